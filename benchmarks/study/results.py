"""Finished trainings, a JSON line each, and what they say: differences paired by seed, corrected for their number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.study.arms import CONTRASTS

Values = dict[str, dict[int, float]]
"""A measure by arm and seed."""


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line and waits until it is on the disk; the end of a line that a kill cut off is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, study: str) -> list[dict[str, Any]]:
    """The finished trainings of a study; lines of others, and what a kill left of a line, are passed over."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("study") == study:
            rows.append(row)
    return rows


def values_of(rows: Iterable[Mapping[str, Any]], data: str, measure: str) -> Values:
    """A measure on a data set, by arm and seed."""
    found: Values = {}
    for row in rows:
        if row["data"] == data and measure in row["measured"]:
            found.setdefault(row["arm"], {})[row["seed"]] = row["measured"][measure]
    return found


@dataclass(frozen=True)
class Difference:
    """Of two arms, over the seeds that both have."""

    arm: str
    other: str
    seeds: int
    mean: float
    low: float
    high: float
    """95%, Student's."""
    p: float
    above: int
    """Seeds in which the first arm is ahead."""
    corrected: float | None = None
    """p after Holm's correction."""


def difference(values: Values, arm: str, other: str) -> Difference | None:
    """The first arm less the other; None with fewer than two seeds in common."""
    seeds = sorted(values.get(arm, {}).keys() & values.get(other, {}).keys())
    if len(seeds) < 2:
        return None
    differences = np.array([values[arm][seed] - values[other][seed] for seed in seeds])
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(seeds)))
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * error
    # Without any spread the difference is certain, or there is none.
    p = float(2 * stats.t.sf(abs(mean) / error, len(seeds) - 1)) if error > 0 else float(mean == 0)
    return Difference(arm, other, len(seeds), mean, mean - half, mean + half, p, int((differences > 0).sum()))


def claims(values: Values, contrasts: Sequence[tuple[str, str]] = CONTRASTS) -> list[Difference]:
    """The named differences, with p-values corrected together by Holm's method (1979)."""
    found = [part for pair in contrasts if (part := difference(values, *pair)) is not None]
    corrected = holm([part.p for part in found])
    return [Difference(**{**vars(part), "corrected": value}) for part, value in zip(found, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step-down, in the given order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        # Holm's steps: the smallest p-value times their number, the next one times one less, and never less than the
        # one before.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def decision(found: Sequence[Difference]) -> str:
    """Which teacher the rule that was written down beforehand asks for.

    ``exact`` where its interval against ``cosine`` lies above 0; ``cosine`` where only that of ``exact`` against
    ``none`` does; else ``none``.
    """
    by_pair = {(part.arm, part.other): part for part in found}
    against_cosine, against_none = by_pair.get(("exact", "cosine")), by_pair.get(("exact", "none"))
    if against_cosine is None or against_none is None:
        return "undecided: the arms none, exact and cosine have fewer than two seeds in common"
    if against_cosine.low > 0:
        return "exact: its interval against cosine lies above 0"
    if against_none.low > 0:
        return "cosine: exact is ahead of none, and not of the control"
    return "none: exact is not ahead of none"
