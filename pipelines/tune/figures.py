"""Pictures of a search: the metric over two fields, parallel coordinates, the best so far, importance.

Values are shown in Matplotlib's viridis, kinds in two of Okabe and Ito's colours, which people with any
colour vision tell apart; what a colour says, a marker says, too. The same trials give the same file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.tri import LinearTriInterpolator, Triangulation

from pipelines.tune.finals import Standing
from pipelines.tune.journal import TrialRecord, TrialState
from pipelines.tune.scales import Scale
from pipelines.tune.search import Search
from pipelines.tune.space import Setting

_VALUES = "viridis"
_PLAIN, _ACCENT = "#56b4e9", "#d55e00"
_DPI = 150
_LEAST_TO_INTERPOLATE = 6
_PIXELS = 200


@dataclass(frozen=True)
class _Point:
    setting: Setting
    value: float
    state: TrialState


def landscape(search: Search, records: Sequence[TrialRecord], standings: Sequence[Standing]) -> Figure:
    """The metric over the map's one or two fields: where all trials can be compared, and at the end."""
    scales = [Scale(search.space[name]) for name in map_fields(search)]
    seen = [record for record in records if record.reports]
    finished = _points([record for record in seen if record.state == "finished"], None)
    panels = [(f"trained to the end: {len(finished)} trials, and the final ranking", finished, standings)]
    if len(finished) < len(seen):
        early = common_progress(seen)
        epoch = early / search.config.scheduler.reports_per_epoch
        panels.insert(0, (f"all {len(seen)} trials after epoch {epoch:g}", _points(seen, early), []))
    figure = Figure(figsize=(6.6 * len(panels), 5.6), dpi=_DPI, layout="constrained")
    figure.suptitle(f"{search.config.metric} of {search.config.stage}")
    draw = _over_two if len(scales) == 2 else _over_one
    for place, (title, points, ranked) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.set_title(title, fontsize=10)
        draw(axes, scales, points, [standing for standing in ranked if standing.scores], search.config.metric)
        if points or ranked:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8, frameon=False, markerscale=0.6
            )
    return figure


def _points(records: Sequence[TrialRecord], progress: int | None) -> list[_Point]:
    """The trials at their end, or after so many validations."""
    values = [(record, record.value if progress is None else record.value_at(progress)) for record in records]
    return [_Point(record.values, value, record.state) for record, value in values if value is not None]


def map_fields(search: Search) -> list[str]:
    """The fields that the landscape is drawn over."""
    if search.config.map is not None:
        return search.config.map
    always = [parameter.field for parameter in search.space.parameters if not parameter.when]
    return always[:2]


def common_progress(records: Sequence[TrialRecord]) -> int:
    """How far every trial came that was validated: there all of them can be compared."""
    return min((record.reports[-1].progress for record in records if record.reports), default=0)


def _over_two(
    axes: Axes, scales: Sequence[Scale], points: Sequence[_Point], standings: Sequence[Standing], metric: str
) -> None:
    across, up = scales
    values = [*(point.value for point in points), *(standing.mean for standing in standings)]
    norm = Normalize(min(values, default=0), max(values, default=1))
    _fill_between(axes, scales, points, norm)
    for style, group in _groups(points):
        x, y = ([scale.place(point.setting) for point in group] for scale in scales)
        colours = [point.value for point in group]
        axes.scatter(x, y, c=colours, s=70, edgecolors="white", linewidths=1.2, norm=norm, cmap=_VALUES, **style)
    for style, ranked in _ranks(standings):
        x, y = ([scale.place(standing.values) for standing in ranked] for scale in scales)
        colours = [standing.mean for standing in ranked]
        axes.scatter(x, y, c=colours, s=190, edgecolors=_ACCENT, linewidths=1.8, norm=norm, cmap=_VALUES, **style)
    for axis, limit, scale in ((axes.xaxis, axes.set_xlim, across), (axes.yaxis, axes.set_ylim, up)):
        has_zero = any(scale.place(standing.values) == scale.zero for standing in standings)
        axis.set_ticks(*scale.ticks(with_zero=has_zero))
        limit(*scale.limits(with_zero=has_zero))
        axis.set_label_text(scale.parameter.field)
    _number(axes, [(across.place(standing.values), up.place(standing.values)) for standing in standings], standings)
    bar = axes.inset_axes((1.03, 0.0, 0.03, 1.0))
    bar.figure.colorbar(ScalarMappable(norm, _VALUES), cax=bar, label=metric)


def _fill_between(axes: Axes, scales: Sequence[Scale], points: Sequence[_Point], norm: Normalize) -> None:
    """Colours the area between the points by linear interpolation; outside of them nothing is known."""
    places = {tuple(scale.place(point.setting) for scale in scales): point.value for point in points}
    known = np.array([[*place, value] for place, value in places.items() if np.isfinite(place).all()])
    if len(known) < _LEAST_TO_INTERPOLATE or np.ptp(known[:, :2], axis=0).min() == 0:
        return
    x, y, z = known.T
    interpolate = LinearTriInterpolator(Triangulation(x, y), z)
    grid = np.meshgrid(np.linspace(x.min(), x.max(), _PIXELS), np.linspace(y.min(), y.max(), _PIXELS))
    axes.pcolormesh(*grid, interpolate(*grid), norm=norm, cmap=_VALUES, alpha=0.6, rasterized=True)


def _over_one(
    axes: Axes, scales: Sequence[Scale], points: Sequence[_Point], standings: Sequence[Standing], metric: str
) -> None:
    (across,) = scales
    for style, group in _groups(points):
        axes.scatter([across.place(point.setting) for point in group], [point.value for point in group],
                     color=_PLAIN, edgecolors="black", s=50, **style)  # fmt: skip
    for style, ranked in _ranks(standings):
        intervals = [(standing.mean, standing.low, standing.high) for standing in ranked]
        bounds = [(mean - low, high - mean) for mean, low, high in intervals if low is not None and high is not None]
        axes.errorbar([across.place(standing.values) for standing in ranked], [standing.mean for standing in ranked],
                      yerr=np.transpose(bounds) if len(bounds) == len(ranked) else None, linestyle="none",
                      color=_ACCENT, capsize=4, markersize=12, **style)  # fmt: skip
    has_zero = any(across.place(standing.values) == across.zero for standing in standings)
    axes.xaxis.set_ticks(*across.ticks(with_zero=has_zero))
    axes.set_xlim(*across.limits(with_zero=has_zero))
    axes.set_xlabel(across.parameter.field)
    axes.set_ylabel(metric)
    _number(axes, [(across.place(standing.values), standing.mean) for standing in standings], standings)


def _groups(points: Sequence[_Point]) -> Iterator[tuple[dict[str, Any], list[_Point]]]:
    """Points that look alike, and how they look."""
    for state, marker, label in (("finished", "o", "trained to the end"), ("stopped", "v", "ended early")):
        group = [point for point in points if point.state == state]
        if group:
            yield {"marker": marker, "label": label}, group


def _ranks(standings: Sequence[Standing]) -> Iterator[tuple[dict[str, Any], list[Standing]]]:
    """Standings that look alike, and how they look."""
    for is_baseline, marker, label in ((True, "s", "baseline, mean"), (False, "D", "finalist, mean")):
        group = [standing for standing in standings if standing.is_baseline == is_baseline]
        if group:
            yield {"marker": marker, "label": f"{label} over {len(group[0].scores)} other seeds"}, group


def _number(axes: Axes, places: Sequence[tuple[float, float]], standings: Sequence[Standing]) -> None:
    """Writes into each mark its place in the ranking, which the legend explains: names would overlap."""
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for number, (place, standing) in enumerate(zip(places, standings, strict=True), start=1):
        if not any(map(math.isnan, place)):
            axes.annotate(
                str(number), place, ha="center", va="center", fontsize=8, color="white", path_effects=outline, zorder=5
            )
        axes.plot([], [], linestyle="none", label=f"{number}: {standing.label}, {standing.mean:.4g}")


def parallel_coordinates(search: Search, records: Sequence[TrialRecord]) -> Figure:
    """A line per trial over all fields and the metric where all trials can be compared; dashed if ended early."""
    seen = [record for record in records if record.reports]
    early = common_progress(seen)
    values = {record.name: value for record in seen if (value := record.value_at(early)) is not None}
    low, high = min(values.values(), default=0.0), max(values.values(), default=1.0)
    norm = Normalize(low, high)
    scales = [Scale(parameter) for parameter in search.space.parameters]
    figure = Figure(figsize=(max(6.0, 2.6 * (len(scales) + 1)), 4.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for record in sorted(seen, key=lambda record: values[record.name]):
        value, finished = values[record.name], record.state == "finished"
        heights = [*(scale.height(record.values) for scale in scales), (value - low) / max(high - low, 1e-12)]
        axes.plot(
            heights,
            color=colormaps[_VALUES](float(norm(value))),
            linestyle="-" if finished else "--",
            linewidth=2.2 if finished else 1.2,
            marker="o",
            markersize=3,
        )
    for place, scale in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.8)
        lowest, highest = scale.bounds
        for tick, label in zip(*scale.ticks(with_zero=False), strict=True):
            height = (tick - lowest) / (highest - lowest)
            axes.annotate(label, (place, height), xytext=(-5, -2), textcoords="offset points", fontsize=7, ha="right",
                          bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
    axes.axvline(len(scales), color="black", linewidth=0.8)
    epoch = early / search.config.scheduler.reports_per_epoch
    names = [scale.parameter.field for scale in scales]
    axes.set_xticks(range(len(scales) + 1), [*names, f"{search.config.metric}\nafter epoch {epoch:g}"])
    axes.set_xlim(-0.3, len(scales) + 0.1)
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.set_title("solid: trained to the end; dashed: ended early; below an axis: not searched", fontsize=9)
    figure.colorbar(ScalarMappable(norm, _VALUES), ax=axes, label=search.config.metric)
    return figure


def history(search: Search, records: Sequence[TrialRecord]) -> Figure:
    """The last value of every trial in the order of their starts, and the best finished one so far."""
    figure = Figure(figsize=(7.2, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    better = max if search.config.direction == "max" else min
    numbered = [(number, record.value, record.state) for number, record in enumerate(records)]
    known = [(number, value, state) for number, value, state in numbered if value is not None]
    for state, marker, face in (("stopped", "v", "none"), ("finished", "o", _PLAIN)):
        axes.scatter(
            [number for number, _, own in known if own == state],
            [value for _, value, own in known if own == state],
            s=45,
            marker=marker,
            facecolors=face,
            edgecolors="black",
            linewidths=0.9,
            label="trained to the end" if state == "finished" else "ended early, at its last validation",
        )
    finished = [(number, value) for number, value, state in known if state == "finished"]
    best = list(itertools.accumulate((value for _, value in finished), better))
    if best:
        steps = [*(number for number, _ in finished), known[-1][0]]
        axes.step(steps, [*best, best[-1]], where="post", color=_ACCENT, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(search.config.metric)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def importance(search: Search, shares: Mapping[str, float]) -> Figure:
    """The share of the metric's variance that each field explains."""
    figure = Figure(figsize=(6.4, 1.4 + 0.45 * max(len(shares), 1)), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=_PLAIN)
    for place, name in enumerate(names):
        axes.annotate(
            f"{shares[name]:.2f}", (shares[name], place), xytext=(4, -3), textcoords="offset points", fontsize=8
        )
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(f"share of the variance of {search.config.metric} (functional ANOVA)")
    if not names:
        axes.set_title("too few trials, or all of them alike", fontsize=9)
    return figure
