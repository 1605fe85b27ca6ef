"""What a tune file says: which settings are tuned, judged by what, tried how often; and the space of them.

A setting is a mapping from field names (``model.loss.kl``) to values. Fields that hang on others
(``when``) are in a setting only where their condition holds.

Imports nothing but the standard library and ``hbi_models.configs``, like ``pipelines.recipe.recipe``.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from hbi_models.configs import require
from pipelines.recipe.checks import require_counts

Setting = Mapping[str, Any]

_RANGES = ("uniform", "loguniform", "int")
_LISTS = ("choice", "grid")
_DIGITS = 4
"""Significant digits of a drawn number: more are noise in every table and recipe."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Who proposes the next setting."""

    name: Literal["tpe", "random", "grid"] = "tpe"
    """``tpe``: Optuna's tree-structured Parzen estimator, which learns from the trials before;
    ``random``; ``grid``: every combination in turn, where every field lists its values."""

    seed: int = 0
    """The setting of trial n is a function of this, of n, and for ``tpe`` of the trials that ended before."""

    startup_trials: int = 8
    """``tpe``: trials drawn at random before there is enough to learn from."""

    def __post_init__(self) -> None:
        require_counts(self, "tune.sampler", "startup_trials")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who ends bad trials early."""

    name: Literal["asha", "pbt", "none"] = "asha"
    """``asha``: asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934). ``pbt``:
    population-based training (Jaderberg et al., 2017, arXiv 1711.09846): all trials train together, bad
    ones take over weights and settings of good ones. ``none``: every trial is trained to its end."""

    reports_per_epoch: int = 1
    """Validations in an epoch, at each of which a trial may be ended; more than one are for the scheduler
    alone and change no result."""

    grace_epochs: float = 1.0
    """``asha``: epochs for which no trial is ended."""

    reduction_factor: float = 3.0
    """``asha``: one in so many goes on at each rung; rungs lie at the grace period times its powers."""

    perturbation_epochs: float = 1.0
    """``pbt``: epochs between two exchanges."""

    quantile: float = 0.25
    """``pbt``: fraction of the trials at the bottom that take over from as many at the top."""

    def __post_init__(self) -> None:
        require_counts(self, "tune.scheduler", "reports_per_epoch")
        for name, epochs in (("grace_epochs", self.grace_epochs), ("perturbation_epochs", self.perturbation_epochs)):
            reports = epochs * self.reports_per_epoch
            require(
                epochs > 0 and abs(reports - round(reports)) < 1e-6,
                f"tune.scheduler.{name} is {epochs}; it must be a positive multiple of 1 / reports_per_epoch, "
                f"1 / {self.reports_per_epoch}: trials are judged at their reports",
            )
        require(
            self.reduction_factor > 1,
            f"tune.scheduler.reduction_factor is {self.reduction_factor}; it must be larger than 1",
        )
        require(0 < self.quantile <= 0.5, f"tune.scheduler.quantile is {self.quantile}; it must lie in (0, 0.5]")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """A search over settings of a recipe."""

    space: dict[str, Any] = field(default_factory=dict)
    """Field of the recipe → how its values are drawn, as text or as a mapping:

    * ``loguniform 0.05 10``, ``uniform 0 1``, ``int 1 8``: both ends included;
    * ``choice 1 2 3``, or ``{choice: [[1, 0, 0], [1, 1, 1]]}`` for values that are no single words;
    * ``grid 1 2 3``: the same, where every value is to be tried, with the sampler ``grid``;
    * a mapping may add ``when: {other.field: value or [values]}``: then the field is tuned only in
      trials whose other field has that value, and keeps the recipe's value in the rest."""

    stage: str = "retrieval"
    """The training stage that is tuned."""

    metric: str = "validation/score"
    """What is compared: any metric that the stage reports after an epoch, at the checkpoint that the
    stage chooses. ``validation/score`` is the mean R@1 of both directions for the retrieval model."""

    direction: Literal["max", "min"] = "max"
    """Whether the metric is to be large or small."""

    trials: int = 16
    """Settings to try; more in a later run go on with the same tuning."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    finalists: int = 2
    """Best settings of the trials that are trained again, with several seeds, for the final ranking."""

    seeds: int = 3
    """Trainings of each finalist and baseline, with the seeds after the recipe's own: that one chose
    the finalists, and a mean over it would flatter them."""

    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → values of fields, for settings that enter the final ranking in any case."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe that all trials change, such as fewer epochs; they go before the recipe and
    the command line."""

    concurrent_trials: int | None = None
    """Most trials at once; null = as many as fit on the cluster."""

    map: list[str] | None = None
    """The one or two fields over which the metric is drawn; null = the first two of the space."""

    def __post_init__(self) -> None:
        require_counts(self, "tune", "trials", "finalists", "seeds", "concurrent_trials")
        require(
            self.map is None or len(self.map) in (1, 2),
            f"tune.map names {len(self.map or ())} fields; a picture has one or two",
        )


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def tidy(self, value: float) -> float:
        """``value`` with few digits, within the range."""
        tidied = round(value) if self.integer else float(f"{value:.{_DIGITS}g}")
        return min(max(tidied, self.low), self.high)

    @property
    def examples(self) -> tuple[float, ...]:
        """Both ends."""
        return (self.low, self.high)

    def __str__(self) -> str:
        kind = "int" if self.integer else "loguniform" if self.log else "uniform"
        return f"{kind} {self.low:g} {self.high:g}"


@dataclass(frozen=True)
class Values:
    """A list of values; with ``every`` they are all to be tried."""

    values: tuple[Any, ...]
    every: bool = False

    @property
    def examples(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values

    def __str__(self) -> str:
        return f"{'grid' if self.every else 'choice'} {' '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Parameter:
    """A field that is tuned."""

    field: str
    domain: Range | Values
    when: Mapping[str, tuple[Any, ...]]
    """Other fields of the space, with the values for which this one is tuned."""

    def applies(self, setting: Setting) -> bool:
        """Whether the field is tuned beside the fields that ``setting`` holds already."""
        return all(name in setting and setting[name] in values for name, values in self.when.items())


@dataclass(frozen=True)
class Space:
    """All parameters; each follows those that it hangs on."""

    parameters: tuple[Parameter, ...]

    def __getitem__(self, field: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.field == field)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(parameter.field for parameter in self.parameters)

    def draw(self, pick: Callable[[Parameter], Any]) -> dict[str, Any]:
        """A setting whose values ``pick`` chooses."""
        setting: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.applies(setting):
                setting[parameter.field] = pick(parameter)
        return setting

    def probes(self, field: str) -> list[dict[str, Any]]:
        """Settings that differ in ``field`` alone: both ends of a range, all values of a list."""
        needed = self._needed(self[field])

        def pick(parameter: Parameter, value: Any) -> Any:
            if parameter.field == field:
                return value
            return needed.get(parameter.field, parameter.domain.examples[0])

        return [
            self.draw(lambda parameter, value=value: pick(parameter, value))  # type: ignore[misc]
            for value in self[field].domain.examples
        ]

    def _needed(self, parameter: Parameter) -> dict[str, Any]:
        """Values of other fields for which ``parameter`` is tuned."""
        needed: dict[str, Any] = {}
        for name, values in parameter.when.items():
            needed |= {**self._needed(self[name]), name: values[0]}
        return needed

    def combinations(self) -> list[dict[str, Any]]:
        """Every setting of a space of lists, the last field changing fastest.

        Raises:
            ValueError: a field has a range.
        """
        endless = [parameter for parameter in self.parameters if isinstance(parameter.domain, Range)]
        if endless:
            raise ValueError(
                f"the sampler grid tries every value, and {endless[0].field} is {endless[0].domain}; list its values "
                f"({endless[0].field}: grid 1 2 3), or choose the sampler tpe or random"
            )
        settings = []
        for picked in itertools.product(*(parameter.domain.examples for parameter in self.parameters)):
            values = dict(zip(self.fields, picked, strict=True))
            setting = self.draw(lambda parameter, values=values: values[parameter.field])  # type: ignore[misc]
            if setting not in settings:
                settings.append(setting)
        return settings


def parse_space(document: Mapping[str, Any]) -> Space:
    """The space that a tune file describes.

    Raises:
        ValueError: there is nothing to tuning, or a description cannot be understood or met.
    """
    require(bool(document), "tune.space is empty; name fields to tune, such as model.loss.kl: loguniform 0.05 10")
    given = {field: _parse_parameter(field, description) for field, description in document.items()}
    ordered: dict[str, Parameter] = {}
    while left := [parameter for field, parameter in given.items() if field not in ordered]:
        free = [parameter for parameter in left if parameter.when.keys() <= ordered.keys()]
        if not free:
            raise ValueError(_unplaced(left[0], given))
        ordered[free[0].field] = free[0]
    return Space(tuple(ordered.values()))


def _unplaced(parameter: Parameter, given: Mapping[str, Parameter]) -> str:
    unknown = sorted(set(parameter.when) - set(given))
    if unknown:
        return (
            f"tune.space.{parameter.field} is tuned when {unknown[0]} has a value, and {unknown[0]} is not "
            "tuned; leave the condition out, or tune that field, too"
        )
    return f"tune.space: the conditions of {', '.join(sorted(given))} hang on one another; remove one of them"


def _parse_parameter(field: str, description: Any) -> Parameter:
    when: Mapping[str, Any] = {}
    if isinstance(description, Mapping):
        when = description.get("when") or {}
        kinds = [kind for kind in description if kind != "when"]
        require(len(kinds) == 1, _misread(field, description))
        kind, arguments = str(kinds[0]), description[kinds[0]]
    else:
        kind, *arguments = str(description).split() or [""]
        arguments = [_word(argument) for argument in arguments]
    require(isinstance(arguments, list) and kind in (*_RANGES, *_LISTS), _misread(field, description))
    domain = _parse_range(field, kind, arguments) if kind in _RANGES else _parse_list(field, kind, arguments)
    conditions = {
        str(name): tuple(values) if isinstance(values, list) else (values,) for name, values in dict(when).items()
    }
    return Parameter(field, domain, conditions)


def _misread(field: str, description: Any) -> str:
    return (
        f"tune.space.{field} is {description!r}; write one of {', '.join((*_RANGES, *_LISTS))} with its numbers or "
        "values, such as loguniform 0.05 10 or {choice: [[1, 0, 0], [1, 1, 1]]}"
    )


def _word(text: str) -> Any:
    """A word of a short description: a number, true, false, null, or text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "null": None}.get(text, text)


def _parse_range(field: str, kind: str, arguments: Sequence[Any]) -> Range:
    given = f"tune.space.{field} is {kind} {' '.join(map(str, arguments))}"
    numbers = [value for value in arguments if isinstance(value, (int, float)) and not isinstance(value, bool)]
    require(len(arguments) == len(numbers) == 2, f"{given}; it needs two numbers, the lowest and the highest")
    low, high = numbers
    require(math.isfinite(low) and math.isfinite(high) and low < high, f"{given}; the first must be below the second")
    require(kind != "loguniform" or low > 0, f"{given}; a logarithm needs numbers above 0, or write uniform")
    require(kind != "int" or (int(low) == low and int(high) == high), f"{given}; both must be whole numbers")
    if kind == "int":
        return Range(int(low), int(high), integer=True)
    return Range(float(low), float(high), log=kind == "loguniform")


def _parse_list(field: str, kind: str, values: Sequence[Any]) -> Values:
    require(len(values) > 0, f"tune.space.{field} is a {kind} of nothing; list its values")
    distinct = [value for place, value in enumerate(values) if value not in values[:place]]
    require(len(distinct) == len(values), f"tune.space.{field} lists a value twice: {' '.join(map(str, values))}")
    return Values(tuple(values), every=kind == "grid")


def flatten(document: Mapping[str, Any], known: Sequence[str], path: str = "") -> dict[str, Any]:
    """Sections and dotted names of a document as one level of field names; what is a field ends the descent."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping) and name not in known:
            found |= flatten(value, known, f"{name}.")
        else:
            found[name] = value
    return found


def field_names(kind: type, path: str = "") -> Iterator[str]:
    """Names of all settings of a configuration class, those of sections that may be absent included."""
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        sections = [option for option in (types[item.name], *get_args(types[item.name])) if _is_section(option)]
        if sections:
            yield from field_names(sections[0], f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def check_fields(names: Sequence[str], known: Sequence[str], place: str) -> None:
    """Raises ``ValueError`` for a name that is no field, with those that look like it."""
    for name in names:
        if name in known:
            continue
        last = name.rsplit(".", 1)[-1]
        alike = difflib.get_close_matches(name, known, n=3) or [other for other in known if other.endswith(f".{last}")]
        hint = f"; did you mean {' or '.join(alike[:3])}?" if alike else ""
        raise ValueError(f"{place} names {name}, which is no field of a recipe{hint} (--print_config shows all)")


def with_values(document: Mapping[str, Any], values: Setting) -> dict[str, Any]:
    """A copy of a recipe's ``document`` in which some fields have other values."""
    changed = copy.deepcopy(dict(document))
    for name, value in values.items():
        section = changed
        *sections, leaf = name.split(".")
        for part in sections:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
        section[leaf] = copy.deepcopy(value)
    return changed


def describe(setting: Setting, digits: int = _DIGITS) -> str:
    """``kl 0.3, skl 1``: the last part of each field's name with its value."""
    return ", ".join(
        f"{name.rsplit('.', 1)[-1]} {f'{value:.{digits}g}' if isinstance(value, float) else value}"
        for name, value in setting.items()
    )
