"""Student's intervals of means over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev, variance

CONFIDENCE = 0.95


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
    # Until no number lies between the two.
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if between(middle) < 2 * probability - 1 else (low, middle)
    return math.tan(middle) * math.sqrt(degrees)


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Welch's 95% interval of the mean of ``second`` less that of ``first``; None for fewer than two of either.

    Degrees of freedom by Satterthwaite (Welch, *Biometrika* 34, 1947), rounded down, which makes the interval a little
    wider.
    """
    if min(len(first), len(second)) < 2:
        return None
    errors = [variance(scores) / len(scores) for scores in (first, second)]
    difference, error = mean(second) - mean(first), sum(errors)
    if error == 0:
        return difference, difference
    freedom = error**2 / sum(part**2 / (len(scores) - 1) for part, scores in zip(errors, (first, second), strict=True))
    half = t_quantile((1 + CONFIDENCE) / 2, max(math.floor(freedom), 1)) * math.sqrt(error)
    return difference - half, difference + half
