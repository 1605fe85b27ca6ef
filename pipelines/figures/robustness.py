"""R@1 against the strength of each perturbation: a panel each, with intervals, and the unperturbed figure dashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pipelines.figures.style import DPI, FAINT, INK
from pipelines.recipe.probe import STRENGTH_NAMES

_COLUMNS = 4


def robustness_chart(document: Mapping[str, Any]) -> Figure:
    """The figure of the part ``perturbations`` of a probe."""
    panels = {name: values for name, values in document.items() if name != "none"}
    (unperturbed,) = document["none"]["recall_at_1"]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(2.3 * _COLUMNS, 1.9 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, (name, values) in zip(grid.flat, panels.items(), strict=False):
        measured: Sequence[Mapping[str, float]] = values["recall_at_1"]
        strengths = range(len(measured))
        axes.axhline(unperturbed["value"], color=FAINT, linestyle="--", linewidth=1)
        axes.fill_between(strengths, [each["low"] for each in measured], [each["high"] for each in measured],
                          color="#2171b5", alpha=0.2, linewidth=0)  # fmt: skip
        axes.plot(strengths, [each["value"] for each in measured], "o-", color="#2171b5", markersize=3)
        axes.set_title(name, fontsize=9, color=INK)
        # The amounts have other units in each panel; the document has them.
        axes.set_xticks(list(strengths), ["none", *STRENGTH_NAMES], fontsize=7)
        # Shared axes hide the labels of all rows but the last, which may have no panel below this one.
        axes.tick_params(labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    grid[0][0].set_ylim(bottom=0)
    figure.supylabel("R@1, text → video", fontsize=9)
    return figure
