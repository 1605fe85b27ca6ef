"""The final ranking: the best settings of the search and the baselines, each trained with several seeds.

The seed of the search chose the finalists, so a setting may be among them by luck with that seed. It
is therefore not among the seeds of the ranking, which are the same for all settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student

from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.search import Search, slug
from pipelines.tune.space import Setting

CONFIDENCE = 0.95


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


def final_records(search: Search, journal: Journal) -> list[TrialRecord]:
    """The trainings of the final ranking, seed after seed, those of earlier runs as they stand."""
    # A finalist may be one of the baselines: one training is enough, and goes by the baseline's name.
    settings = [*search.config.baselines.items(), *finalists(search, journal)]
    records: dict[str, TrialRecord] = {}
    for seed in final_seeds(search):
        for label, values in settings:
            new = search.record(f"final-{slug(label)}-seed-{seed}", values, phase="final", label=label, seed=seed)
            if new.fingerprint not in {record.fingerprint for record in records.values()}:
                known = journal.get(new.name)
                records[new.name] = known if known is not None and known.fingerprint == new.fingerprint else new
    return list(records.values())


def final_seeds(search: Search) -> range:
    """The seeds after the recipe's own."""
    first = search.recipe.seed + 1
    return range(first, first + search.config.seeds)


def finalists(search: Search, journal: Journal) -> list[tuple[str, Setting]]:
    """Labels and values of the best finished trials, the best first.

    Raises:
        ValueError: no trial was trained to its end.
    """
    sign = 1 if search.config.direction == "max" else -1
    finished = [record for record in journal.of("search") if record.state == "finished" and record.value is not None]
    if not finished:
        reasons = [f"{record.name}: {record.reason}" for record in journal.of("search")]
        raise ValueError(f"no trial was trained to its end ({'; '.join(reasons[:3])}); there is nothing to rank")
    # Sorting keeps the order of equal ones: the first one to be tried goes first.
    ranked = sorted(finished, key=lambda record: -sign * (record.value or 0.0))
    return [(record.label, record.values) for record in ranked[: search.config.finalists]]


def standings(search: Search, records: Sequence[TrialRecord]) -> list[Standing]:
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
                is_baseline=label in search.config.baselines,
            )
        )
    sign = 1 if search.config.direction == "max" else -1
    most = max(len(standing.scores) for standing in found)
    if not most:
        raise ValueError(f"every training of the final ranking failed, the first: {records[0].reason}")
    # A mean over fewer seeds is not ranked above one over all.
    return sorted(found, key=lambda one: (len(one.scores) < most, -sign * one.mean if one.scores else 0.0))


def t_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean of normally distributed ``scores``; None for fewer than two."""
    if len(scores) < 2:
        return None
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(scores) - 1)) * stdev(scores) / math.sqrt(len(scores))
    return mean(scores) - half, mean(scores) + half
