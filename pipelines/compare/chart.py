"""Differences with their intervals as a figure: a row per metric, zero in the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipelines.compare.paired import Difference

_DPI = 150
_COLOURS = ("#2171b5", "#d94801", "#1a7f37", "#6a3d9a", "#6b6b6b")

_PLOTTED = ("recall_at_1", "recall_at_5", "recall_at_10", "accuracy", "top_5_accuracy")
"""Those in percent; ranks have another unit."""


def difference_chart(reference: str, differences: Mapping[str, Sequence[Difference]]) -> Figure:
    """Dots are differences to ``reference`` in points, thick lines intervals over videos, thin ones over seeds."""
    shown = {name: [each for each in found if each.metric in _PLOTTED] for name, found in differences.items()}
    # The differences of all sides are of the same metrics.
    rows = [(each.part, each.metric) for each in next(iter(shown.values()))]
    figure = Figure(figsize=(7.2, 1.1 + 0.28 * len(rows) * max(len(shown), 2)), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#1a1a1a", linewidth=0.8)
    # Rows lie 1 apart. The sides share 0.7 of it; the rest is the gap to the next row.
    step = 0.7 / max(len(shown), 1)
    for number, (name, found) in enumerate(shown.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [row + (number - (len(shown) - 1) / 2) * step for row in range(len(found))]
        for place, each in zip(places, found, strict=True):
            if each.over_seeds is not None:
                axes.plot(each.over_seeds, (place, place), color=colour, linewidth=0.8, marker="|")
            axes.plot(each.over_videos, (place, place), color=colour, linewidth=3, alpha=0.45)
        axes.plot(
            [each.difference for each in found], places, "o", color=colour, markersize=5, label=f"{name} − {reference}"
        )
    axes.set_yticks(range(len(rows)), [f"{_part(part)} {_metric(metric)}" for part, metric in rows])
    axes.invert_yaxis()
    axes.set_xlabel("difference in points; thick: 95% over videos, thin: 95% over seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _part(part: str) -> str:
    return part.replace("_to_", " → ")


def _metric(metric: str) -> str:
    return metric.replace("recall_at_", "R@").replace("_", " ")
