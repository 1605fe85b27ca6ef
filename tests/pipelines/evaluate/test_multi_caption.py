"""The protocol for videos with many captions, against torchmetrics and against every order of tied items."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks


def captions_of(num_videos: int, most: int, generator: torch.Generator) -> torch.Tensor:
    """The video of each caption: 1 to ``most`` captions a video, in mixed order."""
    counts = torch.randint(1, most + 1, (num_videos,), generator=generator)
    owners = torch.repeat_interleave(torch.arange(num_videos), counts)
    return owners[torch.randperm(len(owners), generator=generator)]


@pytest.mark.parametrize("seed", range(5))
def test_both_directions_agree_with_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owners = captions_of(12, 40, generator)
    scores = torch.rand(len(owners), 12, generator=generator)
    relevant = owners[:, None] == torch.arange(12)
    texts, videos = torch.meshgrid(torch.arange(len(owners)), torch.arange(12), indexing="ij")
    for ranks, queries in ((text_to_video_ranks(scores, owners), texts), (video_to_text_ranks(scores, owners), videos)):
        metrics = RetrievalMetrics.from_ranks(ranks)
        for k, recall in ((1, metrics.recall_at_1), (5, metrics.recall_at_5), (10, metrics.recall_at_10)):
            # A hit: a right item, whichever, among the k best.
            hits = RetrievalHitRate(top_k=k)(scores.flatten(), relevant.flatten(), indexes=queries.flatten())
            assert recall == pytest.approx(100 * hits.item(), abs=1e-4)
        reciprocal = RetrievalMRR()(scores.flatten(), relevant.flatten(), indexes=queries.flatten())
        assert (1 / ranks).mean().item() == pytest.approx(reciprocal.item(), abs=1e-6)


def expected_first_hit(row: list[float], relevant: list[bool]) -> float:
    """Place of the first relevant item in a sorted list, averaged over all orders of the unsorted one."""
    firsts = []
    for order in itertools.permutations(range(len(row))):
        ranked = sorted(order, key=lambda item: -row[item])
        firsts.append(1 + next(place for place, item in enumerate(ranked) if relevant[item]))
    return statistics.fmean(firsts)


@pytest.mark.parametrize("seed", range(20))
def test_ties_count_as_the_mean_over_all_their_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owners = captions_of(3, 3, generator)[:6]
    owners[:3] = torch.arange(3)
    # Three different scores for up to eighteen cells: most queries are tied somewhere.
    scores = torch.randint(3, (len(owners), 3), generator=generator).float()
    relevant = owners[:, None] == torch.arange(3)
    expected = [expected_first_hit(scores[text].tolist(), relevant[text].tolist()) for text in range(len(owners))]
    assert text_to_video_ranks(scores, owners).tolist() == pytest.approx(expected)
    expected = [expected_first_hit(scores[:, video].tolist(), relevant[:, video].tolist()) for video in range(3)]
    assert video_to_text_ranks(scores, owners).tolist() == pytest.approx(expected)
