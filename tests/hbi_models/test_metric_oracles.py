"""Every metric of the evaluations against an independent way to compute it, to 1e-9: ties, several captions, any size.

SciPy ranks with ties; the expected place of the first of several right items is summed from probabilities; NumPy takes
means and medians; torchmetrics counts hits. Elsewhere: intervals (test_metrics.py), differences (pipelines/compare),
post-processing, conventions, spans and scores of pairs (files of their names beside this one).
"""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torchmetrics.retrieval import RetrievalHitRate

from hbi_models.metric_names import RECALLS_AT
from hbi_models.metrics import (
    AnswerMetrics,
    RetrievalMetrics,
    answer_ranks,
    text_to_video_ranks,
    video_to_text_ranks,
)

CLOSE = {"rel": 0, "abs": 1e-9}


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities of one to seven captions a video with many videos; in odd draws most queries are tied."""
    generator = torch.Generator().manual_seed(seed)
    videos = int(torch.randint(2, 70, (1,), generator=generator))
    owners = torch.arange(videos).repeat_interleave(torch.randint(1, 8, (videos,), generator=generator))
    owners = owners[torch.randperm(len(owners), generator=generator)]
    if seed % 2:
        levels = int(torch.randint(1, 6, (1,), generator=generator))
        return torch.randint(levels, (len(owners), videos), generator=generator) / 3, owners
    return torch.randn(len(owners), videos, generator=generator), owners


def expected_first(scores: np.ndarray, right: np.ndarray) -> float:
    """Expected place of the first right item, of ties in random order: a sum over the places that hold none."""
    best = scores[right].max()
    above, tied = int((scores > best).sum()), scores == best
    wrong, rights = int((tied & ~right).sum()), int((tied & right).sum())
    # The first k of the tied items are all wrong with this probability.
    waiting = [comb(wrong, k) / comb(wrong + rights, k) for k in range(1, wrong + 1)]
    return 1 + above + sum(waiting)


@pytest.mark.parametrize("seed", range(30))
def test_ranks_of_both_directions(seed: int) -> None:
    similarity, owners = drawn(seed)
    scores, own = similarity.double().numpy(), owners.numpy()
    expected = [rankdata(-row, method="average")[video] for row, video in zip(scores, own, strict=True)]
    assert text_to_video_ranks(similarity, owners).tolist() == pytest.approx(expected, **CLOSE)
    expected = [expected_first(scores[:, video], own == video) for video in range(scores.shape[1])]
    assert video_to_text_ranks(similarity, owners).tolist() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("seed", range(30))
def test_recalls_median_and_mean(seed: int) -> None:
    similarity, owners = drawn(seed)
    for ranks in (text_to_video_ranks(similarity, owners), video_to_text_ranks(similarity, owners)):
        values = ranks.numpy()
        expected = {f"recall_at_{k}": 100 * np.mean(values <= k) for k in RECALLS_AT}
        expected |= {"median_rank": np.median(values), "mean_rank": np.mean(values)}
        assert RetrievalMetrics.from_ranks(ranks).as_dict() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("seed", range(0, 30, 2))
def test_hits_are_those_that_torchmetrics_counts(seed: int) -> None:
    """Without ties, whose rule is another one there; counts, for its means are in single precision."""
    similarity, owners = drawn(seed)
    relevant = owners[:, None] == torch.arange(similarity.shape[1])
    texts, videos = torch.meshgrid(*map(torch.arange, similarity.shape), indexing="ij")
    # It takes scores in any order of size, but only non-negative ones.
    places = similarity.flatten().argsort().argsort().float() / similarity.numel()
    for ranks, queries in (
        (text_to_video_ranks(similarity, owners), texts),
        (video_to_text_ranks(similarity, owners), videos),
    ):
        metrics = RetrievalMetrics.from_ranks(ranks)
        for k, recall in ((1, metrics.recall_at_1), (5, metrics.recall_at_5), (10, metrics.recall_at_10)):
            hits = RetrievalHitRate(top_k=k)(places, relevant.flatten(), indexes=queries.flatten())
            count = round(hits.item() * len(ranks))
            assert recall == pytest.approx(100 * count / len(ranks), **CLOSE)


@pytest.mark.parametrize("seed", range(20))
def test_answers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(4, (50, 9), generator=generator) / 3 if seed % 2 else torch.randn(50, 9, generator=generator)
    labels = torch.randint(-1, 9, (50,), generator=generator)
    expected = [
        rankdata(-row, method="average")[label] if label >= 0 else np.inf
        for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True)
    ]
    ranks = answer_ranks(logits, labels)
    assert ranks.tolist() == pytest.approx(expected, **CLOSE)
    accuracies = {
        "accuracy": 100 * np.mean(np.less_equal(expected, 1)),
        "top_5_accuracy": 100 * np.mean(np.less_equal(expected, 5)),
    }
    assert AnswerMetrics.from_ranks(ranks).as_dict() == pytest.approx(accuracies, **CLOSE)
