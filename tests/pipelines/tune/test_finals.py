from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from scipy import stats

from hbi_models.student import t_interval, t_quantile, welch_interval
from pipelines.tune.journal import Journal
from pipelines.tune.proposals import final_records, finalists
from pipelines.tune.results import standings
from tests.pipelines.tune.tunings import KL, SKL, record_of, tuning_of

NONE = {KL: 0, SKL: 0}


def journal_of(tmp_path: Path, **config: Any) -> tuple[Any, Journal]:
    """A tuning of which three trials are finished, one was stopped and one failed."""
    tuning = tuning_of(tmp_path, finalists=2, seeds=2, baselines={"no game": NONE}, **config)
    journal = Journal(tuning.storage)
    for number, (values, scores, state) in enumerate(
        [
            ({KL: 0.1, SKL: 0.1}, [10.0, 11.0], "finished"),
            ({KL: 0.2, SKL: 0.1}, [10.0, 13.0], "finished"),
            ({KL: 0.3, SKL: 0.1}, [99.0], "stopped"),
            ({KL: 0.4, SKL: 0.1}, [], "failed"),
            ({KL: 0.5, SKL: 0.1}, [10.0, 12.0], "finished"),
        ]
    ):
        journal.put(record_of(number, values, scores, state=state))  # type: ignore[arg-type]
    return tuning, journal


def test_finalists_are_the_best_that_were_trained_to_their_end(tmp_path: Path) -> None:
    tuning, journal = journal_of(tmp_path / "max")
    assert [label for label, _ in finalists(tuning, journal)] == ["trial-001", "trial-004"]
    tuning, journal = journal_of(tmp_path / "min", direction="min")
    assert [label for label, _ in finalists(tuning, journal)] == ["trial-000", "trial-004"]


def test_a_tuning_without_a_finished_trial_says_why(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path)
    journal = Journal(tuning.storage)
    journal.put(replace(record_of(0, {}, [], state="failed"), reason="ValueError: no video"))
    with pytest.raises(ValueError, match=r"no trial was trained to its end \(trial-000: ValueError: no video\)"):
        finalists(tuning, journal)


def test_all_settings_are_trained_with_the_same_seeds_which_chose_none_of_them(tmp_path: Path) -> None:
    tuning, journal = journal_of(tmp_path)
    records = final_records(tuning, journal)
    assert [(record.label, record.seed) for record in records] == [
        (label, seed) for seed in (43, 44) for label in ("no game", "trial-001", "trial-004")
    ]
    assert {record.seed for record in records}.isdisjoint({tuning.recipe.seed})
    assert len({record.fingerprint for record in records}) == 6
    assert records[0].values == NONE


@pytest.mark.slow
def test_finals_of_an_earlier_run_stand_unless_the_setting_is_another(tmp_path: Path) -> None:
    tuning, journal = journal_of(tmp_path)
    first, second, *_ = final_records(tuning, journal)
    done = journal.put(replace(first, state="finished", value=5.0))
    journal.put(replace(second, state="finished", value=6.0, fingerprint="another"))
    again = final_records(tuning, journal)
    assert again[0] == done
    assert again[1] == second


def test_a_finalist_that_is_a_baseline_is_trained_once_under_its_name(tmp_path: Path) -> None:
    tuning, journal = journal_of(tmp_path)
    tuning = replace(tuning, config=replace(tuning.config, baselines={"published": {KL: 0.2, SKL: 0.1}}))
    labels = [record.label for record in final_records(tuning, journal)]
    assert labels == ["published", "trial-004"] * 2


def test_the_interval_is_students() -> None:
    # t(0.975, 2 degrees of freedom) = 4.303; the deviation of 1, 2, 3 is 1.
    low, high = t_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert t_interval([1.0]) is None


@pytest.mark.parametrize("probability", [0.75, 0.95, 0.975, 0.9995])
def test_the_quantile_is_that_of_scipy(probability: float) -> None:
    for degrees in (1, 2, 3, 4, 5, 6, 9, 10, 29, 30, 199, 200):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)


def test_the_interval_of_a_difference_is_welchs() -> None:
    first, second = [50.8, 56.0, 53.1, 49.9, 51.2], [57.0, 48.5, 60.2]
    expected = stats.ttest_ind(second, first, equal_var=False)
    low, high = welch_interval(first, second) or (0.0, 0.0)
    error = (expected.confidence_interval(0.95).high - expected.confidence_interval(0.95).low) / 2
    error /= stats.t.ppf(0.975, expected.df)
    half = stats.t.ppf(0.975, int(expected.df)) * error
    assert (low, high) == pytest.approx((mean(second) - mean(first) - half, mean(second) - mean(first) + half))
    assert welch_interval([1.0], second) is None
    assert welch_interval([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0)


def test_the_ranking_is_by_mean_and_full_rows_go_first(tmp_path: Path) -> None:
    tuning, journal = journal_of(tmp_path)
    scores = {"no game": [8.0, 10.0], "trial-001": [12.0, None], "trial-004": [9.5, 9.5]}
    records = [
        replace(record, state="failed" if score is None else "finished", value=score)
        for record in final_records(tuning, journal)
        for score in [scores[record.label][record.seed - 43]]
    ]
    ranking = standings(tuning, records)
    assert [(one.label, one.mean, one.is_baseline) for one in ranking] == [
        ("trial-004", 9.5, False),
        ("no game", 9.0, True),
        ("trial-001", 12.0, False),
    ]
    assert (ranking[0].low, ranking[2].low) == (9.5, None)
    with pytest.raises(ValueError, match=r"every training of the final ranking failed"):
        standings(tuning, [replace(record, state="failed", value=None) for record in records])
