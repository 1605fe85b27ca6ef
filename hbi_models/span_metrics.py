"""Metrics of moments: how well predicted spans of a video fit those that a text is about.

Recall at an IoU counts the queries whose first span overlaps a right one by at least that much. Mean average precision
treats the ranked spans of every query as detections of its right ones (Lei et al., *QVHighlights*, NeurIPS 2021, arXiv
2107.09609: thresholds 0.5 to 0.95 in steps of 0.05, interpolated precision as in ActivityNet's evaluation).
"""

from __future__ import annotations

from collections.abc import Sequence

from hbi_models.config_fields import require

Span = tuple[float, float]
"""Start and end in seconds, or in any unit."""

RECALL_THRESHOLDS = (0.3, 0.5, 0.7)
PRECISION_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def intersection_over_union(first: Span, second: Span) -> float:
    """Returns the overlap of two spans as a part of what both cover together; of two empty ones 0."""
    overlap = max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)
    covered = (first[1] - first[0]) + (second[1] - second[0]) - overlap
    return overlap / covered if covered > 0 else 0.0


def best_overlaps(predicted: Sequence[Sequence[Span]], right: Sequence[Sequence[Span]]) -> list[float]:
    """Returns, for every query, the largest IoU of its first predicted span with a right one; 0 without a span.

    Raises:
        ValueError: the numbers of queries differ, or a query has no right span.
    """
    _check(predicted, right)
    return [
        max(intersection_over_union(spans[0], span) for span in wanted) if spans else 0.0
        for spans, wanted in zip(predicted, right, strict=True)
    ]


def average_precision(predicted: Sequence[Span], right: Sequence[Span], threshold: float) -> float:
    """Returns the interpolated average precision of one query's ranked spans at an IoU of ``threshold``.

    Each right span is found by one prediction at most: in the order of the ranking, each takes the free right span
    with the largest IoU. The precision at a recall is the best at that recall or beyond it.
    """
    free = set(range(len(right)))
    hits = []
    for span in predicted:
        overlaps = {place: intersection_over_union(span, right[place]) for place in free}
        # Of equal overlaps the first right span, whatever the order of the set.
        place = max(overlaps, key=lambda each: (overlaps[each], -each), default=None)
        if place is not None and overlaps[place] >= threshold:
            free.discard(place)
            hits.append(True)
        else:
            hits.append(False)
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    best = [max(precisions[rank:]) for rank in range(len(hits))]
    return sum(precision for precision, hit in zip(best, hits, strict=True) if hit) / len(right)


def mean_average_precision(
    predicted: Sequence[Sequence[Span]],
    right: Sequence[Sequence[Span]],
    thresholds: Sequence[float] = PRECISION_THRESHOLDS,
) -> list[float]:
    """Returns the average precision of every query, averaged over ``thresholds``; their mean is the mAP.

    Raises:
        ValueError: the numbers of queries differ, or a query has no right span.
    """
    _check(predicted, right)
    return [
        sum(average_precision(spans, wanted, threshold) for threshold in thresholds) / len(thresholds)
        for spans, wanted in zip(predicted, right, strict=True)
    ]


def _check(predicted: Sequence[Sequence[Span]], right: Sequence[Sequence[Span]]) -> None:
    require(
        len(predicted) == len(right),
        f"{len(predicted):,} queries have predicted spans and {len(right):,} right ones; the numbers must be equal",
    )
    without = [place for place, spans in enumerate(right) if not spans]
    require(not without, f"{len(without):,} queries have no right span, the first is {without[:1]}; leave them out")
