"""Rows of the benchmark's table: what we do against a baseline, measured in turns in one run."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class ResultsDifferError(Exception):
    """Ours is not the baseline's result: no time of either means anything. ``make bench`` ends with status 1."""


@dataclass(frozen=True)
class Spread:
    """A figure measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """``median (smallest–largest)``, to three significant digits."""
        if len(self.values) == 1:
            return _digits(self.median)
        return f"{_digits(self.median)} ({_digits(min(self.values))}–{_digits(max(self.values))})"


def per_second(count: int, seconds: Spread) -> Spread:
    """The rate at which ``count`` things are done."""
    return Spread(tuple(count / value for value in seconds.values))


@dataclass(frozen=True)
class Target:
    """Where a row is to come; ``relation`` is ``≥`` or ``≤``, ``unit`` follows the number (``×``, ``s``, ``%``)."""

    relation: str
    bound: float
    unit: str = "×"

    def met(self, figure: Spread) -> bool:
        return bool({"≥": operator.ge, "≤": operator.le}[self.relation](figure.median, self.bound))

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:,g} {self.unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``figure`` is what the target speaks of, mostly the ratio of each pair of runs."""

    what: str
    baseline: str
    """What the baseline is, in a few words; empty where the target is absolute."""
    theirs: Spread | None
    ours: Spread | None
    unit: str
    """Of ``theirs`` and ``ours``."""
    figure: Spread
    target: Target | None
    """None: nothing is asked of it; LOG.md says why."""

    def cells(self) -> list[str]:
        return [
            self.what,
            self.baseline or "–",
            f"{self.theirs} {self.unit}" if self.theirs else "–",
            f"{self.ours} {self.unit}" if self.ours else "–",
            f"{self.figure} {self.target.unit if self.target else '×'}",
            str(self.target or "–"),
            "–" if self.target is None else "yes" if self.target.met(self.figure) else "no",
        ]


def ratios(above: Spread, below: Spread) -> Spread:
    """Of runs made in turns, pair by pair: a machine's slow minutes meet both."""
    return Spread(tuple(a / b for a, b in zip(above.values, below.values, strict=True)))


def scaled(spread: Spread, factor: float) -> Spread:
    """Of a part of the work to all of it, or to another unit."""
    return Spread(tuple(factor * value for value in spread.values))


def in_turns(works: Sequence[Callable[[], object]], times: int) -> list[Spread]:
    """Seconds of each of ``works``, run one after the other ``times`` times, after one unmeasured run of each."""
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for work, found in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [Spread(tuple(found)) for found in seconds]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
