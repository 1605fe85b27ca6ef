"""Normalised entropies against the definition, and the scale that gives targets a stated one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from hbi_models.axes import Interaction, PairFeatures
from hbi_models.configs import GameConfig, LossConfig, Quirks
from hbi_models.entropies import TARGET_ENTROPY, entropy_scale, normalized_entropy
from hbi_models.losses import interaction_loss, retrieval_loss
from tests.hbi_models.test_coalitions import random_level
from tests.hbi_models.tiny_model import length_mask

WORDS, FRAMES = length_mask([5, 3, 1], 5), length_mask([4, 1, 4], 4)


def targets(seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))


def mean_entropy(target: Tensor) -> float:
    """Of all softmaxes over two and more real cells, one at a time."""
    found = []
    for pair in range(3):
        cells = target[pair][WORDS[pair]][:, FRAMES[pair]]
        for rows in (cells, cells.T):
            if rows.shape[1] >= 2:
                found += [Categorical(logits=row).entropy().item() / math.log(len(row)) for row in rows]
    return sum(found) / len(found)


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("entropy", [0.3, TARGET_ENTROPY, 0.9])
def test_scaled_targets_have_the_stated_entropy_whatever_their_size(size: float, entropy: float) -> None:
    target = targets(size=size)
    padded = target.masked_fill(~(WORDS[:, :, None] & FRAMES[:, None, :]), torch.nan)
    scale = entropy_scale(padded, WORDS, FRAMES, entropy=entropy)
    assert mean_entropy(scale * target) == pytest.approx(entropy, abs=2e-3)


def test_targets_without_a_scale_get_a_finite_one() -> None:
    assert entropy_scale(torch.zeros(3, 5, 4), WORDS, FRAMES).isfinite()
    assert entropy_scale(torch.ones(1, 1, 1), WORDS[:1, :1], FRAMES[:1, :1]).isfinite()


def test_the_entropy_of_weights_is_that_of_the_definition() -> None:
    logits = 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    expected = [
        Categorical(logits=logits[item, :count]).entropy().item() / math.log(count) for item, count in ((0, 5), (1, 3))
    ]
    assert normalized_entropy(logits, WORDS, dim=1).item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert normalized_entropy(logits[2:], WORDS[2:], dim=1) == 1


def test_the_loss_scales_the_targets_of_each_level_by_themselves() -> None:
    texts = tuple(random_level([5, 3, 2], 5, seed, dtype=torch.float32) for seed in range(3))
    videos = tuple(random_level([4, 2, 3], 4, seed, dtype=torch.float32) for seed in range(3, 6))
    interactions = tuple(Interaction(targets(seed), targets(seed + 3, 10.0**seed)) for seed in range(3))
    features = PairFeatures(texts, videos, interactions)
    game = GameConfig(teacher="exact", similarity_scale="auto")
    settings = {"config": LossConfig(), "quirks": Quirks()}
    parts = retrieval_loss(features, torch.tensor(2.0), **settings, game=game).parts
    for number, level in enumerate(("entity", "action", "event")):
        masks = texts[number].mask, videos[number].mask
        scale = entropy_scale(interactions[number].target, *masks)
        assert parts[f"{level}_target_scale"] == 1000 * scale
        scaled = Interaction(interactions[number].prediction, scale * interactions[number].target)
        torch.testing.assert_close(parts[f"{level}_interaction"], sum(interaction_loss(scaled, *masks)))
    assert parts["entity_target_scale"] / parts["event_target_scale"] > 20
    assert not any("scale" in name for name in retrieval_loss(features, torch.tensor(2.0), **settings).parts)


def test_a_scale_is_positive_or_auto() -> None:
    assert GameConfig(similarity_scale="auto").scale == 1000
    with pytest.raises(ValueError, match="positive"):
        GameConfig(similarity_scale=0.0)
