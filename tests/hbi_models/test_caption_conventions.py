"""Conventions for videos with several captions, against loops over queries and candidates."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from hbi_models.caption_conventions import (
    Reduction,
    caption_group_scores,
    first_captions,
    video_to_group_ranks,
)
from hbi_models.metrics import video_to_text_ranks

OWNERS = torch.tensor([2, 0, 1, 1, 0, 3, 1, 3])


def similarity(seed: int, values: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(8, 4, generator=generator)
        if values is None
        else torch.randint(values, (8, 4), generator=generator) / 7
    )


def rank_by_hand(scores: list[float], own: int) -> float:
    above = sum(score > scores[own] for score in scores)
    return 1 + above + (scores.count(scores[own]) - 1) / 2


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("values", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_captions_of_a_video_are_one_item(seed: int, values: int | None, reduction: Reduction) -> None:
    found = similarity(seed, values)
    reduce = max if reduction == "max" else fmean
    expected = []
    for video in range(4):
        groups = [
            reduce([found[text, video].double().item() for text in range(8) if OWNERS[text] == group])
            for group in range(4)
        ]
        scores = caption_group_scores(found, OWNERS, reduction)[:, video]
        assert scores.tolist() == pytest.approx(groups, abs=1e-12)
        expected.append(rank_by_hand(groups, video))
    assert video_to_group_ranks(found, OWNERS, reduction).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_best_caption_as_one_item_changes_no_hit_at_one_and_flatters_the_others() -> None:
    owners = torch.tensor([0, 1, 1, 2])
    # Both captions of video 1 are above the right one of video 0.
    found = torch.tensor([[0.5, 0.0, 0.0], [0.9, 1.0, 0.0], [0.8, 0.9, 0.0], [0.1, 0.0, 1.0]])
    assert video_to_text_ranks(found, owners).tolist() == [3, 1, 1]
    assert video_to_group_ranks(found, owners, "max").tolist() == [2, 1, 1]


def test_first_captions_are_those_that_come_first() -> None:
    assert first_captions(OWNERS).tolist() == [1, 2, 0, 5]


def test_a_video_without_a_caption_makes_no_item() -> None:
    with pytest.raises(ValueError, match="1 of 4 videos have no caption"):
        caption_group_scores(similarity(0)[:6], torch.tensor([2, 0, 1, 1, 0, 2]), "max")
