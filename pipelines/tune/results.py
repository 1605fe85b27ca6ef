"""What a tuning ends in: a ranking, pictures, and a recipe that is ready to run.

Of the pictures, Optuna draws the parallel coordinates, the history and the importance. The landscape is ours: Optuna's
contour shows finished trials only, has no place for a baseline of 0 on a logarithmic axis, and needs SciPy. Values are
shown in Matplotlib's viridis, kinds in two of Okabe and Ito's colours, which people with any colour vision tell
apart; what a colour says, a marker says, too. The same trials give the same file.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

import numpy as np
import yaml
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

from pipelines.figures.files import png
from pipelines.tables import table
from pipelines.tune.proposals import evaluator_of, final_records, importances, new_study, study_of
from pipelines.tune.space import Parameter, Range, Setting, describe
from pipelines.tune.tracking import TuningTracker
from pipelines.tune.tuning import BEST_RECIPE, RANKING, SUMMARY, Journal, TrialRecord, TrialState, Tuning, asked_for
from pipelines.workspace.artifact import plain, versions
from pipelines.workspace.uris import join_uri

CONFIDENCE = 0.95

_VALUES = "viridis"
_PLAIN, _ACCENT = "#56b4e9", "#d55e00"
_DPI = 150
_LEAST_TO_INTERPOLATE = 6
_PIXELS = 200


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One setting in the final ranking."""

    label: str
    values: Setting
    scores: tuple[float, ...]
    """The metric with each seed whose training did not fail."""
    mean: float
    low: float | None
    high: float | None
    """Bounds of the mean's 95% t-interval over seeds; there are none for one seed."""
    is_baseline: bool


def standings(tuning: Tuning, records: Sequence[TrialRecord]) -> list[Standing]:
    """The settings of the final trainings, the best mean first; those without a score last.

    Raises:
        ValueError: every training failed.
    """
    by_label: dict[str, list[TrialRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    found = []
    for label, trained in by_label.items():
        scores = [record.value for record in trained if record.state == "finished" and record.value is not None]
        low, high = t_interval(scores) or (None, None)
        found.append(
            Standing(
                label=label,
                values=trained[0].values,
                scores=tuple(scores),
                mean=mean(scores) if scores else math.nan,
                low=low,
                high=high,
                is_baseline=label in tuning.config.baselines,
            )
        )
    sign = 1 if tuning.config.direction == "max" else -1
    most = max(len(standing.scores) for standing in found)
    if not most:
        raise ValueError(f"every training of the final ranking failed, the first: {records[0].reason}")
    # A mean over fewer seeds is not ranked above one over all.
    return sorted(found, key=lambda one: (len(one.scores) < most, -sign * one.mean if one.scores else 0.0))


def t_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean of normally distributed ``scores``; None for fewer than two."""
    if len(scores) < 2:
        return None
    half = t_quantile((1 + CONFIDENCE) / 2, len(scores) - 1) * stdev(scores) / math.sqrt(len(scores))
    return mean(scores) - half, mean(scores) + half


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile, above the median, of Student's distribution with whole ``degrees`` of freedom.

    Bisects the finite sum for the distribution function in the angle of tan θ = t / sqrt(degrees)
    (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """

    def between(angle: float) -> float:
        """The probability of -t to t."""
        odd, cosine = degrees % 2, math.cos(angle)
        term = total = cosine if odd else 1.0
        for power in range(2 + odd, degrees, 2):
            term *= cosine**2 * (power - 1) / power
            total += term
        if odd:
            return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
        return math.sin(angle) * total

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if between(middle) < 2 * probability - 1 else (low, middle)
    return math.tan(middle) * math.sqrt(degrees)


@dataclass(frozen=True)
class Results:
    """Everything that a tuning has to say whose trials have ended."""

    tuning: Tuning
    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]

    @classmethod
    def of(cls, tuning: Tuning, journal: Journal) -> Results:
        """The results as the journal has them.

        Raises:
            ValueError: no trial was trained to its end.
        """
        return cls(tuning, journal.of("trial"), final_records(tuning, journal))

    @cached_property
    def ranking(self) -> list[Standing]:
        """Finalists and baselines, the best mean first."""
        return standings(self.tuning, self.finals)

    @property
    def winner(self) -> TrialRecord:
        """The training of the best setting with its first seed."""
        best = self.ranking[0].label
        return next(record for record in self.finals if record.label == best and record.state == "finished")

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """How much each field decides where all trials can be compared."""
        return importances(self.compared)

    @cached_property
    def compared(self) -> Study:
        """The trials where all of them can be compared: after as many validations as the shortest had."""
        seen = [record for record in self.trials if record.reports]
        early = common_progress(seen)
        values = [(record.values, record.value_at(early)) for record in seen]
        return study_of(self.tuning, [(setting, value) for setting, value in values if value is not None])

    def summary(self) -> dict[str, Any]:
        """The whole tuning as one JSON document."""
        config, winner = self.tuning.config, self.winner
        return {
            "tuning": self.tuning.fingerprint,
            "asked_for": asked_for(self.tuning),
            "stage": config.stage,
            "metric": config.metric,
            "direction": config.direction,
            "trials": dict(Counter(record.state for record in self.trials)),
            "ranking": plain(self.ranking),
            "seeds": sorted({record.seed for record in self.finals}),
            "importance": dict(self.importance),
            "winner": {
                "label": winner.label,
                "values": dict(winner.values),
                "seed": winner.seed,
                "value": winner.value,
                "fingerprint": winner.fingerprint,
                "recipe": join_uri(self.tuning.storage.uri, BEST_RECIPE),
            },
            "versions": versions(),
        }

    def best_recipe(self) -> str:
        """The winner's recipe as YAML, with where it comes from above it."""
        config, best, winner = self.tuning.config, self.ranking[0], self.winner
        spread = "" if best.low is None else f" (95% t-interval {best.low:.4g} to {best.high:.4g})"
        scores = ", ".join(f"{score:.6g}" for score in best.scores)
        lines = [
            f"The best of a tuning of {', '.join(self.tuning.space.fields)}.",
            "",
            f"  command    python -m jobs.run --config {shlex.quote(join_uri(self.tuning.storage.uri, BEST_RECIPE))}",
            f"  setting    {best.label}: {describe(best.values, digits=10)}",
            f"  result     {config.metric} {best.mean:.4g}{spread} over seeds; with each: {scores}",
            f"  this seed  {winner.seed}: {config.metric} {winner.value!r}, {config.stage} {winner.fingerprint}",
            f"  chosen by  tuning {self.tuning.fingerprint}: {len(self.trials)} trials, sampler {config.sampler.name}, "
            f"scheduler {config.scheduler.name}; ranking in {SUMMARY} beside this file",
            f"  versions   {', '.join(f'{name} {version}' for name, version in versions().items())}",
        ]
        header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
        recipe = self.tuning.recipe_of(winner.values, winner.seed)
        return f"{header}\n{yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)}"

    def ranking_table(self) -> str:
        """Finalists and baselines with mean, interval and values."""
        return table(
            ["", *(name.rsplit(".", 1)[-1] for name in self.tuning.space.fields), "mean", "95% interval", "by seed"],
            [
                [
                    standing.label,
                    *(_cell(standing.values, name) for name in self.tuning.space.fields),
                    f"{standing.mean:.2f}" if standing.scores else "failed",
                    "" if standing.low is None else f"{standing.low:.2f}–{standing.high:.2f}",
                    ", ".join(f"{score:.2f}" for score in standing.scores),
                ]
                for standing in self.ranking
            ],
        )

    def trial_table(self) -> dict[str, list[Any]]:
        """All trainings by column."""
        records = [*self.trials, *self.finals]
        fields = {name: [record.values.get(name) for record in records] for name in self.tuning.space.fields}
        plain_columns = ("name", "phase", "label", "seed", "state", "value", "reason", "seconds", "fingerprint")
        return {
            **{name: [getattr(record, name) for record in records] for name in plain_columns},
            **fields,
            "epochs": [record.reports[-1].epoch if record.reports else 0.0 for record in records],
        }

    def write(self, tracker: TuningTracker) -> None:
        """Commits all of it to the folder of the tuning, and to the parent run."""
        storage = self.tuning.storage
        pictures = {
            "landscape.png": landscape(self.tuning, self.trials, self.ranking),
            "parallel_coordinates.png": parallel_coordinates(self.tuning, self.compared),
            "history.png": history(self.tuning, self.trials),
            "importance.png": importance_bars(self.tuning, self.compared),
        }
        files = {
            **{name: png(figure) for name, figure in pictures.items()},
            RANKING: f"{self.ranking_table()}\n".encode(),
            BEST_RECIPE: self.best_recipe().encode(),
        }
        for name, data in files.items():
            storage.write_bytes(name, data)
        metrics = {
            "final/mean": self.ranking[0].mean,
            **{f"importance/{name}": share for name, share in self.importance.items()},
        }
        tracker.log_results(
            storage,
            list(files),
            metrics,
            len(self.trials),
            {"trials.json": self.trial_table()},
            {SUMMARY: self.summary()},
        )
        storage.write_json(SUMMARY, self.summary())


def _cell(setting: Setting, name: str) -> str:
    value = setting.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Point:
    setting: Setting
    value: float
    state: TrialState


def landscape(tuning: Tuning, records: Sequence[TrialRecord], ranking: Sequence[Standing]) -> Figure:
    """The metric over the map's one or two fields: where all trials can be compared, and at the end."""
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
    """The trials at their end, or after so many validations."""
    values = [(record, record.value if progress is None else record.value_at(progress)) for record in records]
    return [_Point(record.values, value, record.state) for record, value in values if value is not None]


def map_fields(tuning: Tuning) -> list[str]:
    """The fields that the landscape is drawn over."""
    if tuning.config.map is not None:
        return tuning.config.map
    always = [parameter.field for parameter in tuning.space.parameters if not parameter.when]
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
    """How much each field decides."""
    if not importances(study):
        figure = Figure(dpi=_DPI)
        figure.suptitle("too few trials, or all of them alike")
        return figure
    return _drawn(plot_param_importances, study, evaluator=evaluator_of(study), target_name=tuning.config.metric)


def _drawn(plot: Callable[..., Axes], study: Study, **options: Any) -> Figure:
    """A picture that Optuna draws through pyplot: without a window, and without leaving its style behind."""
    if get_backend(auto_select=False) is None:
        use("agg")
    with pyplot.rc_context({"figure.dpi": _DPI, "figure.constrained_layout.use": True}), warnings.catch_warnings():
        # Of what is experimental in Optuna, and of pictures of few trials.
        warnings.simplefilter("ignore")
        figure = plot(study, **options).figure
        assert isinstance(figure, Figure)
        pyplot.close(figure)
    return figure


@dataclass(frozen=True)
class Scale:
    """Where the values of a field lie on an axis: numbers by size or by logarithm, others side by side."""

    parameter: Parameter

    @property
    def name(self) -> str:
        """The last part of the field's name."""
        return self.parameter.field.rsplit(".", 1)[-1]

    def place(self, setting: Setting) -> float:
        """The place of a setting's value; NaN where the field is not in it."""
        if self.parameter.field not in setting:
            return math.nan
        domain, value = self.parameter.domain, setting[self.parameter.field]
        if not isinstance(domain, Range):
            return float(domain.values.index(value)) if value in domain.values else math.nan
        if domain.log:
            # A logarithmic axis has no zero: it is drawn a little below the range.
            return math.log10(value) if value > 0 else self.zero
        return float(value)

    @property
    def zero(self) -> float:
        """Where 0 is drawn on a logarithmic axis."""
        low, high = self.bounds
        return low - 0.12 * (high - low)

    @property
    def bounds(self) -> tuple[float, float]:
        """Places of the ends."""
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
        if len(inside) > 9:
            inside = [value for value in inside if math.log10(value) % 1 < 1e-9]
        zero = ([self.zero], ["0"]) if with_zero else ([], [])
        return [*zero[0], *map(math.log10, inside)], [*zero[1], *(f"{value:g}" for value in inside)]
