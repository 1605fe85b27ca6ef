"""Metrics of moments against sampled points of time and against every assignment of predictions to right spans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hbi_models.span_metrics import (
    PRECISION_THRESHOLDS,
    Span,
    average_precision,
    best_overlaps,
    intersection_over_union,
    mean_average_precision,
)


def random_spans(random: np.random.Generator, count: int) -> list[Span]:
    edges = np.sort(random.integers(0, 40, (count, 2)), axis=1)
    return [(float(start), float(end + 1)) for start, end in edges]


@pytest.mark.parametrize("seed", range(20))
def test_the_overlap_is_that_of_counted_seconds(seed: int) -> None:
    first, second = random_spans(np.random.default_rng(seed), 2)
    seconds = [set(range(int(start), int(end))) for start, end in (first, second)]
    expected = len(seconds[0] & seconds[1]) / len(seconds[0] | seconds[1])
    assert intersection_over_union(first, second) == pytest.approx(expected, abs=1e-12)


def test_empty_spans_overlap_nothing() -> None:
    assert intersection_over_union((2.0, 2.0), (2.0, 2.0)) == 0
    assert intersection_over_union((0.0, 1.0), (1.0, 2.0)) == 0


def test_the_first_span_counts_against_the_best_right_one() -> None:
    predicted = [[(0.0, 10.0), (20.0, 30.0)], [], [(5.0, 6.0)]]
    right = [[(20.0, 30.0), (0.0, 5.0)], [(0.0, 1.0)], [(5.0, 6.0)]]
    assert best_overlaps(predicted, right) == [0.5, 0.0, 1.0]


def area_under_the_interpolated_curve(hits: list[bool], right: int) -> float:
    """Steps of recall times the envelope of the precision, as detection challenges compute it."""
    found = np.cumsum(hits)
    recall = np.concatenate([[0.0], found / right, [1.0]])
    precision = np.concatenate([[0.0], found / np.arange(1, len(hits) + 1), [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


@pytest.mark.parametrize("seed", range(25))
def test_average_precision_is_the_area_under_the_interpolated_curve(seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted, right = (
        random_spans(random, int(random.integers(1, 7))),
        random_spans(random, int(random.integers(1, 4))),
    )
    threshold = float(random.choice([0.1, 0.3, 0.5]))
    # Greedily, as a ranking is read: each prediction takes the free right span that it fits best.
    free, hits = list(range(len(right))), []
    for span in predicted:
        overlaps = [intersection_over_union(span, right[place]) for place in free]
        hit = bool(overlaps) and max(overlaps) >= threshold
        hits.append(hit)
        if hit:
            del free[overlaps.index(max(overlaps))]
    expected = area_under_the_interpolated_curve(hits, len(right))
    assert average_precision(predicted, right, threshold) == pytest.approx(expected, abs=1e-9)


def test_all_right_spans_in_any_order_are_perfect_and_a_doubled_one_finds_nothing_more() -> None:
    right = [(0.0, 4.0), (10.0, 12.0), (20.0, 29.0)]
    for order in itertools.permutations(right):
        assert average_precision(list(order), right, 0.5) == 1
    assert average_precision([right[0], right[0], right[1]], right[:2], 0.5) == pytest.approx((1 + 2 / 3) / 2)


def test_one_span_a_query_has_the_mean_of_its_hits_over_the_thresholds() -> None:
    """IoU 0.72 reaches five of the ten thresholds, 0.5 to 0.7."""
    assert PRECISION_THRESHOLDS[0] == 0.5 and PRECISION_THRESHOLDS[-1] == 0.95 and len(PRECISION_THRESHOLDS) == 10
    assert mean_average_precision([[(0.0, 72.0)], [(0.0, 100.0)]], [[(0.0, 100.0)]] * 2) == [0.5, 1.0]


def test_queries_must_match_and_have_a_right_span() -> None:
    with pytest.raises(ValueError, match="1 queries have predicted spans and 2"):
        best_overlaps([[]], [[(0.0, 1.0)], [(0.0, 1.0)]])
    with pytest.raises(ValueError, match=r"1 queries have no right span, the first is \[1\]"):
        mean_average_precision([[], []], [[(0.0, 1.0)], []])
