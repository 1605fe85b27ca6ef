from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from pipelines.figures.files import png
from pipelines.tune import figures
from pipelines.tune.finals import Standing
from pipelines.tune.journal import TrialRecord
from pipelines.tune.scales import Scale
from pipelines.tune.search import Search
from pipelines.tune.space import parse_space
from tests.pipelines.tune.searches import BOTH, KL, SKL, record_of, search_of


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return search_of(tmp_path_factory.mktemp("figures"), scheduler={"name": "asha"})


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


def test_trials_are_compared_where_all_of_them_came(search: Search) -> None:
    assert figures.common_progress(records()) == 1
    figure = figures.landscape(search, records(), STANDINGS)
    logarithms = [(np.log10(record.values[KL]), np.log10(record.values[SKL])) for record in records()]
    early = sorted((round(x, 6), round(y, 6), float(number)) for number, (x, y) in enumerate(logarithms))
    assert points(figure, 0) == early
    zero = Scale(search.space[KL]).zero
    late = [(round(x, 6), round(y, 6), 10.0 + number) for number, (x, y) in enumerate(logarithms) if number % 2 == 0]
    assert points(figure, 1) == sorted([*late, (0.0, 0.0, 17.0), (round(zero, 6), round(zero, 6), 12.0)])


def test_without_trials_that_were_stopped_there_is_one_panel(search: Search) -> None:
    finished = [record for record in records() if record.state == "finished"]
    figure = figures.landscape(search, finished, STANDINGS)
    assert len(figure.axes) == 1
    assert len(points(figure, 0)) == len(finished) + len(STANDINGS)


def test_the_same_trials_give_the_same_files(search: Search, tmp_path: Path) -> None:
    def draw() -> list[bytes]:
        pictures = [
            figures.landscape(search, records(), STANDINGS),
            figures.parallel_coordinates(search, records()),
            figures.history(search, records()),
            figures.importance(search, {KL: 0.7, SKL: 0.3}),
        ]
        return [png(picture) for picture in pictures]

    first = draw()
    assert first == draw()
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in first)


@pytest.mark.parametrize("trials", [[], records()[:1]])
def test_few_trials_give_pictures_too(search: Search, trials: list[TrialRecord]) -> None:
    for figure in (
        figures.landscape(search, trials, []),
        figures.parallel_coordinates(search, trials),
        figures.history(search, trials),
        figures.importance(search, {}),
    ):
        assert png(figure)


def test_the_best_so_far_never_gets_worse(search: Search) -> None:
    (line,) = figures.history(search, records()).axes[0].lines
    assert list(line.get_ydata()) == [10.0, 12.0, 14.0, 16.0, 16.0]


def test_values_lie_on_axes_by_logarithm_by_size_or_side_by_side() -> None:
    space = parse_space({**BOTH, "lr": "uniform 0 2", "teacher": "choice exact none", "c": "int 1 9"})
    log, size, side = (Scale(space[name]) for name in (KL, "lr", "teacher"))
    assert log.place({KL: 1.0}) == 0
    assert log.place({KL: 0}) < log.bounds[0] == pytest.approx(np.log10(0.05))
    assert size.place({"lr": 0.5}) == 0.5
    assert side.place({"teacher": "none"}) == 1
    assert np.isnan(size.place({})) and size.height({}) < 0
    assert log.height({KL: 10.0}) == pytest.approx(1)
    places, labels = log.ticks(with_zero=True)
    assert labels == ["0", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10"]
    assert places == sorted(places)
    assert side.ticks(with_zero=False) == ([0.0, 1.0], ["exact", "none"])
