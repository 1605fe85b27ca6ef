from __future__ import annotations

import math

import pytest

from pipelines.recipe.report import ReportConfig
from pipelines.report.charts import HEIGHT, WIDTH, curve, curves, histogram, number


def coordinates(points: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in points.split()]  # type: ignore[misc]


def test_a_curve_fills_its_frame() -> None:
    chart = curve("loss", [(5, 4.0), (10, 1.0), (15, 2.0)])
    places = coordinates(chart.points)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][1] < places[2][1] < places[1][1], "larger values stand higher"
    assert [tick.text for tick in chart.across] == ["5", "15"]
    assert [tick.text for tick in chart.up] == ["1", "4"]
    assert chart.last == "2"


@pytest.mark.parametrize(
    "points",
    [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(1, math.nan), (2, 3.0)], [(step, math.sin(step)) for step in range(5000)]],
)
def test_any_curve_stays_in_its_frame(points: list[tuple[float, float]]) -> None:
    places = coordinates(curve("any", points).points)
    assert 2 <= len(places) <= 300
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    last = max(step for step, value in points if math.isfinite(value))
    assert curve("any", points).across[1].text == f"{last:,.0f}"


def test_a_curve_without_a_finite_value_says_so() -> None:
    assert curve("loss", [(1, math.nan)]).last == "no finite value"


def test_every_value_is_in_one_bar() -> None:
    chart = histogram("words", [3, 3, 4, 7])
    heights = [height for *_, height in chart.bars]
    assert len(heights) == 3
    assert max(heights) == pytest.approx(2 * min(heights))
    assert chart.last == "median 4"
    assert len(histogram("seconds", [1.5, 1.5]).bars) == 1
    assert all(x + width <= WIDTH for x, _, width, _ in histogram("seconds", [index / 7 for index in range(99)]).bars)


def test_there_is_a_curve_for_each_metric() -> None:
    history = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "train/kl": 0.5, "validation/score": 3.0}]
    assert [chart.title for chart in curves(history, "train/")] == ["loss", "kl"]


def test_numbers_are_short() -> None:
    assert [number(value) for value in (12, 0.25, 12345, 0.000187, -0.5, 2.5e9)] == [
        "12", "0.25", "12,345", "1.9e-4", "-0.5", "2.5e9",
    ]  # fmt: skip


def test_figures_to_compare_with_must_be_of_a_metric() -> None:
    with pytest.raises(ValueError, match=r"report\.published names t2v; the metrics are: text_to_video/recall_at_1"):
        ReportConfig(published={"t2v": 1.0})
