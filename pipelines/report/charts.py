"""Curves and bars as coordinates of a small SVG; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 300.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 8.0, 8.0, 22.0
_MOST_POINTS = 300


@dataclass(frozen=True)
class Tick:
    """A number at an axis, and its place along that axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A curve or bars in a frame of ``WIDTH`` by ``HEIGHT``."""

    title: str
    points: str
    """Points of the curve in SVG's notation; empty for bars."""
    bars: Sequence[tuple[float, float, float, float]]
    """Left, top, width and height of each."""
    across: Sequence[Tick]
    up: Sequence[Tick]
    last: str
    """The last value of the curve."""


def curve(title: str, points: Sequence[tuple[float, float]]) -> Chart:
    """A curve through (step, value); a selection if there are very many points."""
    kept = [point for point in points if math.isfinite(point[1])]
    stride = max(math.ceil(len(kept) / _MOST_POINTS), 1)
    # Counted from the end, so that the last value is kept.
    kept = kept[::-1][::stride][::-1]
    if not kept:
        return Chart(title, "", [], [], [], "no finite value")
    low, high = _range([value for _, value in kept])
    first, last = kept[0][0], kept[-1][0]

    def place(step: float, value: float) -> tuple[float, float]:
        return _across((step - first) / ((last - first) or 1.0)), _up((value - low) / (high - low))

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in kept))
    return Chart(
        title,
        line if len(kept) > 1 else f"{line} {_across(1.0):.1f},{line.split(',')[1]}",
        [],
        [Tick(_across(0.0), f"{first:,.0f}"), Tick(_across(1.0), f"{last:,.0f}")],
        [Tick(_up(0.0), number(low)), Tick(_up(1.0), number(high))],
        number(kept[-1][1]),
    )


def histogram(title: str, values: Sequence[float] | np.ndarray, *, bins: int = 24) -> Chart:
    """How often values occur; a few whole numbers get a bar each."""
    found = np.asarray(values, dtype=np.float64)
    low, high = float(found.min()), float(found.max())
    if high - low < bins and bool((found == np.floor(found)).all()):
        bins, width = int(high - low) + 1, 1.0
    else:
        width = (high - low) / bins or 1.0
    # The largest value would be the first of a bin after the last one.
    counts = np.bincount(np.minimum((found - low) / width, bins - 1).astype(np.int64), minlength=bins).tolist()
    largest, step = max(counts), (WIDTH - _LEFT - _RIGHT) / bins
    bars = [
        (_LEFT + index * step + 0.5, _up(count / largest), max(step - 1, 0.5), _up(0.0) - _up(count / largest))
        for index, count in enumerate(counts)
        if count
    ]
    # A value that occurs, also in the middle of an even number of them.
    middle = float(np.partition(found, len(found) // 2)[len(found) // 2])
    return Chart(
        title,
        "",
        bars,
        [Tick(_across(0.0), number(low)), Tick(_across(1.0), number(high))],
        [Tick(_up(0.0), "0"), Tick(_up(1.0), f"{largest:,}")],
        f"median {number(middle)}",
    )


def curves(history: Sequence[Mapping[str, float]], prefix: str) -> list[Chart]:
    """A chart for each metric of a training whose name starts with ``prefix``, in the order of their first point."""
    found: dict[str, dict[float, float]] = {}
    for record in history:
        for name, value in record.items():
            if name.startswith(prefix):
                found.setdefault(name, {})[record["step"]] = value
    return [curve(name.removeprefix(prefix), sorted(points.items())) for name, points in found.items()]


def number(value: float) -> str:
    """A number as short as possible."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)


def _across(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _up(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)
