from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from pipelines.figures.files import png
from pipelines.tune import pictures
from pipelines.tune.journal import TrialRecord
from pipelines.tune.pictures import Scale
from pipelines.tune.results import Results, Standing, common_progress
from pipelines.tune.space import parse_space
from pipelines.tune.tuning import Tuning
from tests.pipelines.tune.tunings import BOTH, KL, SKL, record_of, tuning_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return tuning_of(tmp_path_factory.mktemp("figures"), scheduler={"name": "asha"})


def records() -> list[TrialRecord]:
    """Eight trials, of which every second was stopped after one epoch."""
    random = np.random.default_rng(0)
    return [
        record_of(
            number,
            {KL: float(kl), SKL: float(skl)},
            [float(number), 10.0 + number] if number % 2 == 0 else [float(number)],
            state="finished" if number % 2 == 0 else "stopped",
        )
        for number, (kl, skl) in enumerate(10 ** random.uniform(-1.3, 1, size=(8, 2)))
    ]


def standing(label: str, values: dict[str, Any], mean: float, *, is_baseline: bool) -> Standing:
    return Standing(
        label=label, values=values, scores=(mean, mean), mean=mean, low=mean, high=mean, is_baseline=is_baseline
    )


STANDINGS = [
    standing("trial-006", {KL: 1.0, SKL: 1.0}, 17.0, is_baseline=False),
    standing("no game", {KL: 0, SKL: 0}, 12.0, is_baseline=True),
]


def points(figure: Figure, panel: int) -> list[tuple[float, float, float]]:
    """Place and value of every mark of a panel."""
    found = []
    for collection in figure.axes[panel].collections:
        if isinstance(collection, PathCollection):
            values = np.asarray(collection.get_array())
            found += [
                (*place, value) for place, value in zip(np.asarray(collection.get_offsets()), values, strict=True)
            ]
    return sorted((round(float(x), 6), round(float(y), 6), float(value)) for x, y, value in found)


def test_trials_are_compared_where_all_of_them_came(tuning: Tuning) -> None:
    assert common_progress(records()) == 1
    figure = pictures.landscape(tuning, records(), STANDINGS)
    logarithms = [(np.log10(record.values[KL]), np.log10(record.values[SKL])) for record in records()]
    early = sorted((round(x, 6), round(y, 6), float(number)) for number, (x, y) in enumerate(logarithms))
    assert points(figure, 0) == early
    zero = Scale(tuning.space[KL]).zero
    late = [(round(x, 6), round(y, 6), 10.0 + number) for number, (x, y) in enumerate(logarithms) if number % 2 == 0]
    assert points(figure, 1) == sorted([*late, (0.0, 0.0, 17.0), (round(zero, 6), round(zero, 6), 12.0)])


def test_without_trials_that_were_stopped_there_is_one_panel(tuning: Tuning) -> None:
    finished = [record for record in records() if record.state == "finished"]
    figure = pictures.landscape(tuning, finished, STANDINGS)
    assert len(figure.axes) == 1
    assert len(points(figure, 0)) == len(finished) + len(STANDINGS)


def drawn_of(tuning: Tuning, trials: list[TrialRecord], ranking: list[Standing]) -> list[bytes]:
    compared = Results(tuning, trials, []).compared
    drawn = [
        pictures.landscape(tuning, trials, ranking),
        pictures.parallel_coordinates(tuning, compared),
        pictures.history(tuning, trials),
        pictures.importance_bars(tuning, compared),
    ]
    return [png(figure) for figure in drawn]


@pytest.mark.slow
def test_the_same_trials_give_the_same_files_and_leave_nothing_behind_in_pyplot(tuning: Tuning) -> None:
    before = dict(pyplot.rcParams)
    first = drawn_of(tuning, records(), STANDINGS)
    assert first == drawn_of(tuning, records(), STANDINGS)
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in first)
    assert pyplot.get_fignums() == []
    assert {name: value for name, value in pyplot.rcParams.items() if value != before[name]}.keys() <= {"backend"}


@pytest.mark.parametrize("trials", [[], records()[:1]])
def test_few_trials_give_pictures_too(tuning: Tuning, trials: list[TrialRecord]) -> None:
    assert all(drawn_of(tuning, trials, []))


def test_fields_of_all_kinds_are_drawn(tmp_path: Path) -> None:
    space = {
        KL: "loguniform 0.05 10",
        "model.level_rates": {"choice": [[1, 0, 0], [1, 1, 1]]},
        "retrieval.epochs": {"int": [2, 8], "when": {"model.level_rates": [[1, 0, 0]]}},
    }
    tuning = tuning_of(tmp_path, space=space)
    settings: list[dict[str, Any]] = [
        {KL: 0.1, "model.level_rates": [1, 0, 0], "retrieval.epochs": 3},
        {KL: 0.2, "model.level_rates": [1, 1, 1]},
        {KL: 0.5, "model.level_rates": [1, 0, 0], "retrieval.epochs": 5},
        {KL: 2.0, "model.level_rates": [1, 1, 1]},
        {KL: 9.0, "model.level_rates": [1, 1, 1]},
    ]
    trials = [record_of(number, setting, [float(number)]) for number, setting in enumerate(settings)]
    assert all(drawn_of(tuning, trials, []))
    assert Results(tuning, trials, []).importance.keys() == space.keys()


def test_trials_that_were_ended_early_are_in_the_history_and_the_best_so_far_never_gets_worse(tuning: Tuning) -> None:
    axes = pictures.history(tuning, records()).axes[0]
    (line,) = axes.lines
    assert list(line.get_xdata()) == list(range(8))
    assert list(line.get_ydata()) == [10.0, 10.0, 12.0, 12.0, 14.0, 14.0, 16.0, 16.0]
    marks = [np.asarray(collection.get_offsets()).tolist() for collection in axes.collections]
    assert [[0, 10], [2, 12], [4, 14], [6, 16]] in marks
    assert [[1, 1], [3, 3], [5, 5], [7, 7]] in marks
    assert png(pictures.history(tuning, records()[1:])), "the first one was ended early"


def test_values_lie_on_axes_by_logarithm_by_size_or_side_by_side() -> None:
    space = parse_space({**BOTH, "lr": "uniform 0 2", "teacher": "choice exact none", "c": "int 1 9"})
    log, size, side = (Scale(space[name]) for name in (KL, "lr", "teacher"))
    assert log.place({KL: 1.0}) == 0
    assert log.place({KL: 0}) < log.bounds[0] == pytest.approx(np.log10(0.05))
    assert size.place({"lr": 0.5}) == 0.5
    assert side.place({"teacher": "none"}) == 1
    assert np.isnan(size.place({}))
    places, labels = log.ticks(with_zero=True)
    assert labels == ["0", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]
    assert places == sorted(places)
    assert side.ticks(with_zero=False) == ([0.0, 1.0], ["exact", "none"])
