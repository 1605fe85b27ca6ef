"""Weighted token-wise interaction against loops, in tiles of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.similarity import level_similarity, maxima, retrieval_similarity, token_cosines, token_weights
from tests.hbi_models.tiny_model import length_mask

DIM = 8


def random_level(lengths: list[int], max_tokens: int, seed: int) -> TokenLevel:
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(lengths, max_tokens)
    features = torch.randn(*mask.shape, DIM, generator=generator)
    return TokenLevel(features, mask, torch.randn(mask.shape, generator=generator))


@pytest.fixture(name="texts")
def random_texts() -> TokenLevel:
    return random_level([5, 2, 4], 5, seed=0)


@pytest.fixture(name="videos")
def random_videos() -> TokenLevel:
    return random_level([3, 1, 4, 2], 4, seed=1)


def slow_similarity(texts: TokenLevel, videos: TokenLevel) -> Tensor:
    """Follows the formula for one pair at a time, on real tokens alone."""
    result = torch.zeros(len(texts.mask), len(videos.mask))
    for a, word_mask in enumerate(texts.mask):
        for b, frame_mask in enumerate(videos.mask):
            words, frames = texts.features[a, word_mask], videos.features[b, frame_mask]
            cosines = torch.cosine_similarity(words[:, None], frames[None], dim=-1)
            alpha = texts.logits[a, word_mask].softmax(dim=0)
            beta = videos.logits[b, frame_mask].softmax(dim=0)
            result[a, b] = (alpha @ cosines.amax(dim=1) + beta @ cosines.amax(dim=0)) / 2
    return result


def test_the_similarity_is_that_of_the_formula(texts: TokenLevel, videos: TokenLevel) -> None:
    torch.testing.assert_close(level_similarity(texts, videos), slow_similarity(texts, videos))


@pytest.mark.parametrize("max_tile_elements", [1, 40, 65, 10**6])
def test_tiles_change_neither_values_nor_gradients(
    texts: TokenLevel, videos: TokenLevel, max_tile_elements: int
) -> None:
    results = []
    for size in (max_tile_elements, 10**9):
        leaves = [
            tensor.detach().requires_grad_()
            for tensor in (texts.features, texts.logits, videos.features, videos.logits)
        ]
        similarity = level_similarity(
            TokenLevel(leaves[0], texts.mask, leaves[1]),
            TokenLevel(leaves[2], videos.mask, leaves[3]),
            max_tile_elements=size,
        )
        similarity.square().sum().backward()
        results.append([similarity.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("training", [False, True])
def test_no_tile_is_larger_than_allowed(
    texts: TokenLevel, videos: TokenLevel, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    sizes = []

    def spy(values: Tensor, dim: int) -> Tensor:
        sizes.append(values.numel())
        return maxima(values, dim)

    monkeypatch.setattr("hbi_models.similarity.maxima", spy)
    texts.features.requires_grad_(training)
    level_similarity(texts, videos, max_tile_elements=45)
    assert len(sizes) > 2
    assert max(sizes) <= 45


def test_training_keeps_the_places_of_the_maxima_and_not_the_cosines() -> None:
    cosines = torch.randn(3, 5, 4, 6, requires_grad=True)
    saved = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        best = maxima(cosines, dim=1)
    torch.testing.assert_close(best, cosines.amax(dim=1))
    assert saved
    assert all(tensor.numel() <= best.numel() for tensor in saved)


def test_padding_takes_no_part(texts: TokenLevel, videos: TokenLevel) -> None:
    filled = TokenLevel(
        torch.where(texts.mask[:, :, None], texts.features, 50.0),
        texts.mask,
        torch.where(texts.mask, texts.logits, 50.0),
    )
    torch.testing.assert_close(level_similarity(filled, videos), level_similarity(texts, videos))
    torch.testing.assert_close(token_weights(filled), token_weights(texts))


def test_a_short_item_can_score_below_zero_unless_published() -> None:
    word = TokenLevel(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    frame = TokenLevel(-torch.ones(1, 2, 2), torch.tensor([[True, False]]), torch.zeros(1, 2))
    assert level_similarity(word, frame).item() == pytest.approx(-1)
    # The best frame of the word is now the padding; the best word of the real frame still has cosine -1.
    assert level_similarity(word, frame, zero_floor=True).item() == pytest.approx(-0.5)


def test_an_item_without_tokens_matches_nothing_and_has_finite_gradients(texts: TokenLevel) -> None:
    videos = random_level([0, 2], 3, seed=2)
    features, logits = videos.features.requires_grad_(), videos.logits.requires_grad_()
    similarity = level_similarity(texts, TokenLevel(features, videos.mask, logits))
    assert similarity[:, 0].tolist() == [0, 0, 0]
    similarity.sum().backward()
    assert features.grad.isfinite().all() and logits.grad.isfinite().all()


def test_levels_are_mixed_by_rates(texts: TokenLevel, videos: TokenLevel) -> None:
    other_texts, other_videos = random_level([2, 2, 1], 2, seed=3), random_level([1, 2, 2, 2], 2, seed=4)
    mixed = retrieval_similarity((texts, other_texts), (videos, other_videos), (0.25, 2.0))
    expected = 0.25 * level_similarity(texts, videos) + 2 * level_similarity(other_texts, other_videos)
    torch.testing.assert_close(mixed, expected)


def test_rates_that_do_not_fit_the_levels_are_refused(texts: TokenLevel, videos: TokenLevel) -> None:
    with pytest.raises(ValueError, match="2 rates"):
        retrieval_similarity((texts,), (videos,), (1.0, 0.0))
    with pytest.raises(ValueError, match="at least one"):
        retrieval_similarity((texts,), (videos,), (0.0,))


def test_cosines_of_pairs_are_zero_at_padding(texts: TokenLevel) -> None:
    videos = random_level([3, 1, 4], 4, seed=1)
    cosines = token_cosines(texts, videos)
    real = texts.mask[:, :, None] & videos.mask[:, None, :]
    assert cosines[~real].abs().max() == 0
    expected = torch.cosine_similarity(texts.features[:, :, None], videos.features[:, None], dim=-1)
    torch.testing.assert_close(cosines[real], expected[real])


def test_weights_are_a_distribution_over_real_tokens(texts: TokenLevel) -> None:
    weights = token_weights(texts)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert weights[~texts.mask].abs().max() == 0
