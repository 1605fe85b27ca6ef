"""The pictures of a tuning.

Optuna draws the parallel coordinates, the history and the importance. The landscape is ours: Optuna's contour shows
only finished trials, cannot place a baseline of 0 on a logarithmic axis, and needs SciPy. Values are shown in
Matplotlib's viridis, kinds in two of Okabe and Ito's colours, which people with any colour vision can tell apart.
Markers show the kinds, too. The same trials give the same file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import get_backend, pyplot, use
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.tri import LinearTriInterpolator, Triangulation
from optuna import Study
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial
from optuna.visualization.matplotlib import plot_optimization_history, plot_parallel_coordinate, plot_param_importances

from pipelines.tune.journal import TrialRecord, TrialState
from pipelines.tune.proposals import evaluator_of, importances, new_study
from pipelines.tune.results import Results, Standing, common_progress
from pipelines.tune.space import Parameter, Range, Setting
from pipelines.tune.tuning import Tuning

_VALUES = "viridis"
_PLAIN, _ACCENT = "#56b4e9", "#d55e00"
_DPI = 150
_LEAST_TO_INTERPOLATE = 6
_PIXELS = 200


def pictures_of(results: Results) -> dict[str, Figure]:
    """All pictures by the names of their files."""
    tuning, trials = results.tuning, results.trials
    return {
        "landscape.png": landscape(tuning, trials, results.ranking),
        "parallel_coordinates.png": parallel_coordinates(tuning, results.compared),
        "history.png": history(tuning, trials),
        "importance.png": importance_bars(tuning, results.compared),
    }


@dataclass(frozen=True)
class _Point:
    setting: Setting
    value: float
    state: TrialState


def landscape(tuning: Tuning, records: Sequence[TrialRecord], ranking: Sequence[Standing]) -> Figure:
    """The metric over the one or two fields of the map: at the last validation that all trials reached, and at the
    end."""
    scales = [Scale(tuning.space[name]) for name in map_fields(tuning)]
    seen = [record for record in records if record.reports]
    finished = _points([record for record in seen if record.state == "finished"], None)
    panels = [(f"trained to the end: {len(finished)} trials, and the final ranking", finished, ranking)]
    if len(finished) < len(seen):
        early = common_progress(seen)
        epoch = early / tuning.config.scheduler.reports_per_epoch
        panels.insert(0, (f"all {len(seen)} trials after epoch {epoch:g}", _points(seen, early), []))
    figure = Figure(figsize=(6.6 * len(panels), 5.6), dpi=_DPI, layout="constrained")
    figure.suptitle(f"{tuning.config.metric} of {tuning.config.stage}")
    draw = _over_two if len(scales) == 2 else _over_one
    for place, (title, points, ranked) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.set_title(title, fontsize=10)
        draw(axes, scales, points, [standing for standing in ranked if standing.scores], tuning.config.metric)
        if points or ranked:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8, frameon=False, markerscale=0.6
            )
    return figure


def _points(records: Sequence[TrialRecord], progress: int | None) -> list[_Point]:
    """The trials at their end, or after ``progress`` validations."""
    values = [(record, record.value if progress is None else record.value_at(progress)) for record in records]
    return [_Point(record.values, value, record.state) for record, value in values if value is not None]


def map_fields(tuning: Tuning) -> list[str]:
    """The fields that the landscape is drawn over."""
    if tuning.config.map is not None:
        return tuning.config.map
    always = [parameter.field for parameter in tuning.space.parameters if not parameter.when]
    return always[:2]


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
    """Colours the area between the points by linear interpolation; the area outside of them stays white."""
    places = {tuple(scale.place(point.setting) for scale in scales): point.value for point in points}
    known = np.array([[*place, value] for place, value in places.items() if np.isfinite(place).all()])
    # Without an extent in both directions there are no triangles.
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
    """Points with the same marker, and its style."""
    for state, marker, label in (("finished", "o", "trained to the end"), ("stopped", "v", "ended early")):
        group = [point for point in points if point.state == state]
        if group:
            yield {"marker": marker, "label": label}, group


def _ranks(standings: Sequence[Standing]) -> Iterator[tuple[dict[str, Any], list[Standing]]]:
    """Standings with the same marker, and its style."""
    for is_baseline, marker, label in ((True, "s", "baseline, mean"), (False, "D", "finalist, mean")):
        group = [standing for standing in standings if standing.is_baseline == is_baseline]
        if group:
            yield {"marker": marker, "label": f"{label} over {len(group[0].scores)} other seeds"}, group


def _number(axes: Axes, places: Sequence[tuple[float, float]], standings: Sequence[Standing]) -> None:
    """Writes its place in the ranking into each mark; the legend gives the names, which would overlap."""
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for number, (place, standing) in enumerate(zip(places, standings, strict=True), start=1):
        if not any(map(math.isnan, place)):
            axes.annotate(
                str(number), place, ha="center", va="center", fontsize=8, color="white", path_effects=outline, zorder=5
            )
        # Draws nothing, but adds a line to the legend.
        axes.plot([], [], linestyle="none", label=f"{number}: {standing.label}, {standing.mean:.4g}")


def parallel_coordinates(tuning: Tuning, study: Study) -> Figure:
    """A line per trial over all fields and the metric."""
    figure = _drawn(plot_parallel_coordinate, study, target_name=tuning.config.metric)
    figure.set_size_inches(max(6.4, 2.6 * (len(tuning.space.fields) + 1)), 4.8)
    return figure


def history(tuning: Tuning, records: Sequence[TrialRecord]) -> Figure:
    """The value of every trial in the order of their starts, and the best finished one so far."""
    study = new_study(tuning.config)
    for record in records:
        finished = record.state == "finished"
        # Optuna draws complete trials only; a failed one keeps its place in the order.
        state = OptunaState.COMPLETE if finished else OptunaState.FAIL
        study.add_trial(create_trial(state=state, value=record.value if finished else None))
    figure = _drawn(plot_optimization_history, study, target_name=tuning.config.metric)
    ended = {number: record.value for number, record in enumerate(records) if record.state == "stopped"}
    axes = figure.axes[0]
    axes.scatter([*ended], [value for value in ended.values() if value is not None], marker="v", facecolors="none",
                 edgecolors="black", label="ended early, at its last validation")  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8, frameon=False)
    return figure


def importance_bars(tuning: Tuning, study: Study) -> Figure:
    """How important each field is."""
    if not importances(study):
        figure = Figure(dpi=_DPI)
        figure.suptitle("too few trials, or all of them alike")
        return figure
    return _drawn(plot_param_importances, study, evaluator=evaluator_of(study), target_name=tuning.config.metric)


def _drawn(plot: Callable[..., Axes], study: Study, **options: Any) -> Figure:
    """A picture that Optuna draws with pyplot, without opening a window or changing the global style."""
    if get_backend(auto_select=False) is None:
        use("agg")
    with pyplot.rc_context({"figure.dpi": _DPI, "figure.constrained_layout.use": True}), warnings.catch_warnings():
        # Optuna warns of experimental functions, and of pictures of few trials.
        warnings.simplefilter("ignore")
        figure = plot(study, **options).figure
        assert isinstance(figure, Figure)
        pyplot.close(figure)
    return figure


@dataclass(frozen=True)
class Scale:
    """The axis of a field: numbers on a linear or logarithmic scale, other values side by side."""

    parameter: Parameter

    def place(self, setting: Setting) -> float:
        """The place of a setting's value; NaN where the field is not in it."""
        if self.parameter.field not in setting:
            return math.nan
        domain, value = self.parameter.domain, setting[self.parameter.field]
        if not isinstance(domain, Range):
            return float(domain.values.index(value)) if value in domain.values else math.nan
        if domain.log:
            # A logarithmic axis has no zero, so zero is drawn a little below the range.
            return math.log10(value) if value > 0 else self.zero
        return float(value)

    @property
    def zero(self) -> float:
        """Where 0 is drawn on a logarithmic axis."""
        low, high = self.bounds
        return low - 0.12 * (high - low)

    @property
    def bounds(self) -> tuple[float, float]:
        """Places of the ends of the range."""
        domain = self.parameter.domain
        if not isinstance(domain, Range):
            return 0.0, max(len(domain.values) - 1.0, 1.0)
        return (math.log10(domain.low), math.log10(domain.high)) if domain.log else (domain.low, domain.high)

    def limits(self, *, with_zero: bool) -> tuple[float, float]:
        """Ends of an axis that shows all values."""
        low, high = self.bounds
        margin = 0.06 * (high - low)
        return (self.zero if with_zero else low) - margin, high + margin

    def ticks(self, *, with_zero: bool) -> tuple[list[float], list[str]]:
        """Places and labels of round values."""
        domain = self.parameter.domain
        if not isinstance(domain, Range):
            return [float(place) for place in range(len(domain.values))], [str(value) for value in domain.values]
        if not domain.log:
            values = [float(value) for value in np.linspace(domain.low, domain.high, 5)]
            return values, [f"{value:.3g}" for value in values]
        decades = range(math.floor(math.log10(domain.low)), math.ceil(math.log10(domain.high)) + 1)
        round_values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        inside = [value for value in round_values if domain.low * 0.999 <= value <= domain.high * 1.001]
        # Too many to be read side by side: powers of ten only.
        if len(inside) > 9:
            inside = [value for value in inside if math.log10(value) % 1 < 1e-9]
        zero = ([self.zero], ["0"]) if with_zero else ([], [])
        return [*zero[0], *map(math.log10, inside)], [*zero[1], *(f"{value:g}" for value in inside)]
