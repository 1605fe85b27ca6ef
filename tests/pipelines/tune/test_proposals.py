from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.tune.driver import Driver
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.proposals import ListedTrials, ProposedTrials, Proposer, importances, study_of
from pipelines.tune.space import parse_space
from pipelines.tune.tracking import TuningTracker
from pipelines.tune.tuning import Tuning
from tests.pipelines.tune.tunings import KL, SKL, record_of, tuning_of


def value_of(setting: Mapping[str, Any]) -> float:
    """Best at kl 0.5; skl matters a tenth as much."""
    return -abs(math.log(setting.get(KL, 1) / 0.5)) - 0.1 * abs(math.log(setting.get(SKL, 1)))


def run(tuning: Tuning, journal: Journal, *, until: int | None = None) -> list[TrialRecord]:
    """Tries the settings of a tuning one after another; ``until`` so many have ended."""
    queue = ProposedTrials(tuning, journal)
    while until is None or sum(record.ended for record in journal.of("trial")) < until:
        record = queue.next()
        if record is None:
            break
        journal.put(record)
        tried = record_of(0, record.values, [value_of(record.values)])
        ended = journal.put(replace(tried, name=record.name, fingerprint=record.fingerprint))
        queue.reported(ended)
        queue.ended(ended)
    return journal.of("trial")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tuning_of(tmp_path).storage)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_tuning_that_goes_on_proposes_what_it_would_have_proposed(tmp_path: Path, sampler: str) -> None:
    options: dict[str, Any] = {"trials": 9, "sampler": {"name": sampler, "startup_trials": 3}}
    one, other = (tuning_of(tmp_path / name, **options) for name in ("one", "other"))
    whole = run(one, Journal(one.storage))
    run(other, Journal(other.storage), until=5)
    parts = run(other, Journal(other.storage))
    assert len(whole) == 9
    assert [record.values for record in parts] == [record.values for record in whole]
    assert len({record.fingerprint for record in whole}) == 9


@pytest.mark.slow
def test_a_trial_that_was_interrupted_comes_first(tmp_path: Path, journal: Journal) -> None:
    tuning = tuning_of(tmp_path, trials=3)
    queue = ProposedTrials(tuning, journal)
    first, second = queue.next(), queue.next()
    assert first is not None and second is not None
    journal.put(replace(first, state="finished", value=1.0))
    journal.put(second)
    queue = ProposedTrials(tuning, journal)
    assert queue.next() == second
    third = queue.next()
    assert third is not None and third.name == "trial-002"
    assert queue.next() is None


def test_values_lie_in_their_ranges_and_samplers_differ_by_seed(tmp_path: Path) -> None:
    space = parse_space({"a": "loguniform 0.01 1", "b": "int 1 3", "c": {"choice": [[1], "x"], "when": {"b": 2}}})
    settings = []
    for seed in (0, 1):
        tuning = replace(tuning_of(tmp_path, sampler={"name": "random", "seed": seed}), space=space)
        proposer = Proposer(tuning.config, tuning.space)
        drawn = [proposer.propose(str(number), number) for number in range(30)]
        settings.append(drawn)
        for setting in drawn:
            assert setting is not None
            assert 0.01 <= setting["a"] <= 1
            assert setting["b"] in (1, 2, 3)
            assert ("c" in setting) == (setting["b"] == 2)
            assert setting.get("c", "x") in ([1], "x")
        # The logarithm is uniform: half of the draws lie below the geometric mean, give or take 3 deviations.
        assert 7 <= sum(setting["a"] < 0.1 for setting in drawn if setting) <= 23
    assert settings[0] != settings[1]


@pytest.mark.slow
def test_the_estimator_learns_where_the_metric_is_good(tmp_path: Path) -> None:
    means = {}
    for sampler in ("random", "tpe"):
        tuning = tuning_of(tmp_path, sampler={"name": sampler})
        proposer, values = Proposer(tuning.config, tuning.space), []
        for number in range(60):
            record = record_of(number, {}, [0.0])
            setting = proposer.propose(record.name, number)
            assert setting is not None
            values.append(value_of(setting))
            proposer.ended(replace(record, values=setting, value=values[-1]))
        means[sampler] = np.mean(values[30:])
    assert means["tpe"] > means["random"] + 0.3


def test_a_grid_is_tried_in_full_and_once(tmp_path: Path) -> None:
    space = {KL: "grid 0.5 1 2", SKL: "choice 1 2"}
    tuning = tuning_of(tmp_path, space=space, sampler={"name": "grid"}, trials=99)
    found = [(record.values[KL], record.values[SKL]) for record in run(tuning, Journal(tuning.storage))]
    assert found == [(kl, skl) for kl in (0.5, 1, 2) for skl in (1, 2)]


def test_a_grid_goes_on_after_settings_that_come_to_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Only the estimator is trained on labels.
    space = {"model.game.teacher": "grid estimator exact cosine", "labels.kind": "grid exact published"}
    tuning = tuning_of(tmp_path, space=space, sampler={"name": "grid"}, trials=99)
    journal = Journal(tuning.storage)
    run(tuning, journal, until=3)
    found = [tuple(record.values.values()) for record in run(tuning, journal)]
    assert found == [("estimator", "exact"), ("estimator", "published"), ("exact", "exact"), ("cosine", "exact")]
    driver = Driver(
        tuning,
        "trial",
        ProposedTrials(tuning, journal),
        journal,
        lambda recipe: True,
        TuningTracker.__new__(TuningTracker),
        lambda record: tuning.storage,
        limit=None,
    )
    caplog.set_level("INFO")
    assert not driver.prepare()
    driver.__exit__(None, None, None)
    assert "tuning: 4/4 trials" in caplog.text


@pytest.mark.slow
def test_a_space_of_few_settings_ends_when_all_are_tried(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, space={KL: "choice 0.5 1 2"}, trials=99)
    records = run(tuning, Journal(tuning.storage))
    assert sorted(record.values[KL] for record in records) == [0.5, 1, 2]


def test_a_list_is_done_without_what_was_done_before() -> None:
    done, begun, new = record_of(0, {}, [1.0]), record_of(1, {}, [1.0], state="running"), record_of(2, {}, [])
    queue = ListedTrials([done, begun, replace(new, state="running")])
    assert (queue.total, queue.done) == (3, 1)
    assert [queue.next() for _ in range(3)] == [begun, replace(new, state="running"), None]


def test_the_field_that_decides_has_most_of_the_importance(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    settings = [{KL: float(kl), SKL: float(skl)} for kl, skl in 10 ** random.uniform(-1.3, 1, size=(60, 2))]
    for direction, sign in (("max", 1), ("min", -1)):
        tuning = tuning_of(tmp_path, direction=direction)
        values = [(setting, sign * value_of(setting)) for setting in settings]
        shares = importances(study_of(tuning, values))
        assert list(shares) == [KL, SKL]
        assert shares[KL] > 0.8
        assert sum(shares.values()) == pytest.approx(1)
        assert importances(study_of(tuning, [(setting, 1.0) for setting in settings])) == {}
        assert importances(study_of(tuning, values[:3])) == {}
