"""How evenly importance is spread, what the interaction loss pulls at, and the warning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hbi_models.axes import PairFeatures, TokenLevel
from hbi_models.configs import LEVELS, LossConfig
from hbi_models.losses import retrieval_loss
from hbi_models.retrieval import RetrievalModel
from pipelines.train.collapse import CollapseWarnings, game_figures
from tests.hbi_models.test_coalitions import random_level
from tests.hbi_models.tiny_model import random_batches, tiny_config


def made(folder: Path) -> tuple[RetrievalModel, PairFeatures]:
    torch.manual_seed(0)
    model = RetrievalModel(tiny_config(folder))
    return model, model(*random_batches([12, 5, 7], [6, 2, 3]))


def loss_of(model: RetrievalModel, features: PairFeatures) -> tuple[Tensor, dict[str, Tensor]]:
    loss = retrieval_loss(features, model.clip.logit_scale, config=LossConfig(), quirks=model.config.quirks)
    return loss.total, loss.parts


def test_the_gradient_is_the_interaction_losss_share_on_the_tokens(tmp_path: Path) -> None:
    model, features = made(tmp_path)
    tokens = [(features.texts[level].features, features.videos[level].features) for level in range(3)]
    for leaf in sum(tokens, ()):
        leaf.retain_grad()
    _, parts = loss_of(model, features)
    figures = game_figures(features, features, parts, skl=3.0)
    for number, level in enumerate(LEVELS):
        lengths = []
        for part in ("interaction", "nce"):
            for leaf in sum(tokens, ()):
                leaf.grad = None
            parts[f"{level}_{part}"].backward(retain_graph=True)
            lengths.append(torch.cat([leaf.grad.flatten() for leaf in tokens[number]]).norm())
        assert figures[f"game/{level}_gradient"] == pytest.approx(3 * (lengths[0] / lengths[1]).item(), rel=1e-5)


def test_looking_changes_no_gradient(tmp_path: Path) -> None:
    gradients = []
    for looks in (False, True):
        model, features = made(tmp_path)
        total, parts = loss_of(model, features)
        if looks:
            game_figures(features, features, parts, skl=1.0)
            assert all(parameter.grad is None for parameter in model.parameters())
        total.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_weights_are_told_by_their_evenness() -> None:
    even = random_level([5, 3], 5, 0, logit_scale=0.0, dtype=torch.float32)
    steep = TokenLevel(even.features, even.mask, 50 * torch.eye(5)[:2])
    single = random_level([1, 1], 1, 1, dtype=torch.float32)
    features = PairFeatures((even, steep, single), (steep, even, single), ())
    figures = {name: round(value.item(), 3) for name, value in game_figures(features, features, {}, skl=1.0).items()}
    assert figures == {
        "game/entity_words_entropy": 1,
        "game/entity_words_largest": round((1 / 5 + 1 / 3) / 2, 3),
        "game/entity_frames_entropy": 0,
        "game/entity_frames_largest": 1,
        "game/action_words_entropy": 0,
        "game/action_words_largest": 1,
        "game/action_frames_entropy": 1,
        "game/action_frames_largest": round((1 / 5 + 1 / 3) / 2, 3),
    }


def test_a_collapse_is_told_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    warnings = CollapseWarnings()
    point = {"game/action_words_entropy": 0.2, "game/action_gradient": 0.42, "game/entity_words_entropy": 0.8}
    with caplog.at_level(logging.WARNING):
        warnings.look([(25, {"game/action_words_entropy": 0.5}), (50, point)])
        warnings.look([(75, point)])
        warnings.look([(75, {"game/event_frames_entropy": 0.1})])
    first, second = (record.getMessage() for record in caplog.records)
    assert "words at the level action have collapsed at step 50" in first
    assert "42% as hard" in first and "similarity_scale to auto" in first
    assert "frames at the level event" in second and "no interaction loss" in second
