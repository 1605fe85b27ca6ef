"""The space of a tuning: which values a field of the recipe may have, and the settings that follow.

A setting is a mapping from field names (``model.loss.kl``) to values. A field with a condition on others (``when``) is
in a setting only if the condition holds.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hbi_models.config_fields import require

Setting = Mapping[str, Any]

_RANGES = ("uniform", "loguniform", "int")
_LISTS = ("choice", "grid")
_DIGITS = 4
"""Significant digits of a drawn number; more would only be noise in tables and recipes."""


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
        # Rounding may have left the range.
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
    """A list of values; with ``every`` all of them are tried."""

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
    """All parameters; each comes after those that its condition names."""

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
            # The other field may be conditional itself.
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
            # Combinations that differ only in a field whose condition does not hold are one setting.
            if setting not in settings:
                settings.append(setting)
        return settings


def parse_space(document: Mapping[str, Any]) -> Space:
    """The space that a tune file describes.

    Raises:
        ValueError: there is nothing to tune, or a description is not valid or cannot be met.
    """
    require(bool(document), "tune.space is empty; name fields to tune, such as model.loss.kl: loguniform 0.05 10")
    given = {field: _parse_parameter(field, description) for field, description in document.items()}
    ordered: dict[str, Parameter] = {}
    # A field comes when all that its condition names are there; if none can come, the conditions cannot be met.
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
    return f"tune.space: the conditions of {', '.join(sorted(given))} depend on one another; remove one of them"


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
    require(len(values) > 0, f"tune.space.{field} is a {kind} without values; list them")
    # No set, because values may be lists.
    distinct = [value for place, value in enumerate(values) if value not in values[:place]]
    require(len(distinct) == len(values), f"tune.space.{field} lists a value twice: {' '.join(map(str, values))}")
    return Values(tuple(values), every=kind == "grid")


def describe(setting: Setting, digits: int = _DIGITS) -> str:
    """``kl 0.3, skl 1``: the last part of each field's name with its value."""
    return ", ".join(
        f"{name.rsplit('.', 1)[-1]} {f'{value:.{digits}g}' if isinstance(value, float) else value}"
        for name, value in setting.items()
    )
