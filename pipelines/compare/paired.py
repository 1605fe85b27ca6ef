"""The paired bootstrap: every resample draws the same videos for all evaluations, with all their queries.

Queries of one video are correlated, and so are the ranks that two models give to one query. Therefore videos are
resampled, and the difference is taken within each resample (Efron and Tibshirani, *An Introduction to the Bootstrap*,
1993, chapter 8; Koehn, *Statistical significance tests for machine translation evaluation*, 2004). A side is the mean
of its seeds. The variation between seeds has its own interval, Welch's, because five seeds on one gallery are only five
independent numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hbi_models.metrics import AnswerMetrics, RetrievalMetrics, cluster_resamples
from hbi_models.student import CONFIDENCE, welch_interval
from pipelines.compare.measured import Measured, Query, Side

Bounds = tuple[float, float]

PARTS: Mapping[str, type[RetrievalMetrics | AnswerMetrics]] = {
    "text_to_video": RetrievalMetrics,
    "video_to_text": RetrievalMetrics,
    "answers": AnswerMetrics,
}


@dataclass(frozen=True)
class Difference:
    """One metric of two sides."""

    part: str
    metric: str
    first: float
    second: float
    difference: float
    """The second less the first, in the metric's own unit."""
    over_videos: Bounds
    """95% interval over resampled videos, the trained models fixed."""
    over_seeds: Bounds | None
    """95% interval over seeds (Welch), the videos fixed; None with one seed on a side."""


def compare(first: Side, second: Side, *, seed: int, resamples: int) -> list[Difference]:
    """All metrics of both sides, whose evaluations have the same queries."""
    return [
        difference
        for part in first.runs[0].ranks
        for difference in _compare_part(part, first, second, seed=seed, resamples=resamples)
    ]


def _compare_part(part: str, first: Side, second: Side, *, seed: int, resamples: int) -> list[Difference]:
    queries = sorted(first.runs[0].ranks[part])
    metrics = PARTS[part]
    sides = [[_values(run, part, queries) for run in side.runs] for side in (first, second)]
    # Numbered by name, so that one seed draws the same videos for all evaluations of these queries.
    names = {video: number for number, video in enumerate(sorted({query[1] for query in queries}))}
    clusters = torch.tensor([names[query[1]] for query in queries])
    drawn = [
        _subtract(*(_mean(metrics, [run[rows] for run in side]) for side in sides))
        for rows in cluster_resamples(clusters, generator=torch.Generator().manual_seed(seed), num_resamples=resamples)
    ]
    whole = [[metrics.from_ranks(run).as_dict() for run in side] for side in sides]
    tail = (1 - CONFIDENCE) / 2
    found = []
    for name in whole[0][0]:
        one, other = ([run[name] for run in side] for side in whole)
        values = torch.tensor([resample[name] for resample in drawn], dtype=torch.float64)
        low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        means = fmean(one), fmean(other)
        found.append(Difference(part, name, *means, means[1] - means[0], (low, high), welch_interval(one, other)))
    return found


def _values(run: Measured, part: str, queries: Sequence[Query]) -> Tensor:
    return torch.tensor([run.ranks[part][query] for query in queries], dtype=torch.float64)


def _mean(metrics: type[RetrievalMetrics | AnswerMetrics], runs: Sequence[Tensor]) -> dict[str, float]:
    found = [metrics.from_ranks(ranks).as_dict() for ranks in runs]
    return {name: fmean(each[name] for each in found) for name in found[0]}


def _subtract(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: second[name] - value for name, value in first.items()}


def comparison_document(
    sides: Sequence[Side], differences: Mapping[str, Sequence[Difference]], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Everything about a comparison as JSON; ``differences`` are those of each side to the first."""
    return {
        "protocol": sides[0].runs[0].protocol,
        "sides": {side.name: [{"place": run.place, "seed": run.seed} for run in side.runs] for side in sides},
        "compared_with": sides[0].name,
        "resamples": resamples,
        "seed": seed,
        "differences": {name: [asdict(each) for each in found] for name, found in differences.items()},
    }
