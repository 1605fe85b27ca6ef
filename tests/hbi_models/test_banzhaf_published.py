"""The expectation of the published sampling against enumeration of its draws, and the sampling itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hbi_models.banzhaf.game import every_subset
from hbi_models.banzhaf.published import published_labels, sample_published_labels, value_of_draw
from tests.hbi_models.banzhaf_games import Game, random_game


def weighted(game: Game) -> Game:
    """The game with softmax weights over the real tokens in place of its logits."""
    words = game.word_logits.masked_fill(~game.word_mask, -torch.inf).softmax(dim=-1)
    frames = game.frame_logits.masked_fill(~game.frame_mask, -torch.inf).softmax(dim=-1)
    return game._replace(word_logits=words, frame_logits=frames)


def mean_and_deviation_of_draws(game: Game) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one draw, over every pair of subsets; 0 at padding."""
    pairs, words, frames = game.similarity.shape
    coalitions = [
        (kept_words, kept_frames) for kept_words in every_subset(words) for kept_frames in every_subset(frames)
    ]
    kept_words, kept_frames = (
        torch.stack(kept).repeat_interleave(pairs, dim=0) for kept in zip(*coalitions, strict=True)
    )
    # Every coalition of every pair is a pair of one batch.
    many = Game(*(part.repeat(len(coalitions), *[1] * (part.ndim - 1)) for part in game))
    mean, square = torch.zeros_like(game.similarity), torch.zeros_like(game.similarity)
    for word in range(words):
        for frame in range(frames):
            members = many.word_mask & kept_words, many.frame_mask & kept_frames
            values = value_of_draw(*many[:3], *members, word=word, frame=frame).reshape(len(coalitions), pairs)
            mean[:, word, frame], square[:, word, frame] = values.mean(0), values.square().mean(0)
    return mean * game.present, (square - mean.square()).clamp(min=0).sqrt() * game.present


@pytest.mark.slow
@pytest.mark.parametrize(("words", "frames"), [(1, 1), (1, 3), (3, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_labels_are_the_mean_over_all_draws(words: int, frames: int, padded: bool) -> None:
    # Similarities of either sign: with every frame present and all of them negative, the
    # maximum loses its floor at zero.
    game = weighted(random_game(pairs=3, words=words, frames=frames, padded=padded))
    labels = published_labels(*game, scale=1.0)
    expected, _ = mean_and_deviation_of_draws(game)
    torch.testing.assert_close(labels, expected, rtol=0, atol=1e-12)


def test_labels_scale_with_the_similarities() -> None:
    game = weighted(random_game(words=4, frames=3, padded=True))
    torch.testing.assert_close(published_labels(*game), 1000 * published_labels(*game, scale=1.0))


def test_values_at_padding_have_no_effect() -> None:
    game = weighted(random_game(words=4, frames=3, padded=True))
    dirty = game._replace(
        similarity=game.similarity.masked_fill(~game.present, 7.0),
        word_logits=game.word_logits.masked_fill(~game.word_mask, 7.0),
        frame_logits=game.frame_logits.masked_fill(~game.frame_mask, 7.0),
    )
    labels = published_labels(*dirty)
    torch.testing.assert_close(labels, published_labels(*game), rtol=0, atol=1e-9)
    assert (labels[~game.present] == 0).all()


@pytest.mark.slow
def test_sampling_agrees_with_the_expectation_within_its_standard_error() -> None:
    game = weighted(random_game(pairs=64, words=3, frames=2))
    draws = 50
    sampled = sample_published_labels(*game, generator=torch.Generator().manual_seed(0), scale=1.0, num_draws=draws)
    mean, deviation = mean_and_deviation_of_draws(game)
    scores = (sampled - mean) / (deviation / draws**0.5)
    # 384 nearly normal scores: each bound fails for fewer than one seed in ten thousand.
    assert abs(scores.mean().item()) < 4 / scores.numel() ** 0.5
    assert scores.std().item() == pytest.approx(1, abs=0.15)


def test_drawn_subsets_replace_enumeration_above_the_limit_and_depend_on_the_generator_alone() -> None:
    game = weighted(random_game(words=10, frames=4, padded=True))
    exact = published_labels(*game, scale=1.0)

    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return published_labels(*game, scale=1.0, most_subsets=512, generator=generator)

    assert torch.equal(drawn(0), drawn(0))
    assert 0 < (drawn(0) - exact).abs().max().item() < 0.05
    assert not torch.equal(drawn(0), drawn(1))


def test_more_tokens_than_can_be_enumerated_need_a_generator() -> None:
    with pytest.raises(ValueError, match=r"13 tokens have 2\^13 subsets.*pass a torch.Generator"):
        published_labels(*weighted(random_game(words=13, frames=2)))
