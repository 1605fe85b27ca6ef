"""The expected similarity of random coalitions against enumeration, draws, finite differences, and the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.banzhaf.coalitions import (
    LEFT_OUT,
    expected_maxima,
    expected_weights,
    most_places,
    place_weights,
)
from hbi_models.banzhaf.exact import weight_gains
from hbi_models.banzhaf.game import brute_force_expectation, coalition_values
from hbi_models.similarity import level_similarity, token_cosines, token_weights
from tests.hbi_models.tiny_model import length_mask

DIM = 8


def random_level(
    lengths: list[int], tokens: int, seed: int, *, logit_scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> TokenLevel:
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(lengths, tokens)
    features = torch.randn(*mask.shape, DIM, generator=generator, dtype=dtype)
    return TokenLevel(features, mask, logit_scale * torch.randn(mask.shape, generator=generator, dtype=dtype))


def pair_of(texts: TokenLevel, videos: TokenLevel, text: int, video: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and logits of the real tokens of one pair."""
    words, frames = texts.mask[text], videos.mask[video]
    one, other = (level.map(lambda part, at=at: part[at : at + 1]) for level, at in ((texts, text), (videos, video)))
    return token_cosines(one, other)[0][words][:, frames], texts.logits[text, words], videos.logits[video, frames]


@pytest.mark.parametrize("presence", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("logit_scale", [0.0, 1.0, 5.0, 100.0])
def test_equals_enumeration(presence: float, logit_scale: float) -> None:
    texts = random_level([5, 1, 3], 5, seed=0, logit_scale=logit_scale)
    videos = random_level([3, 4, 1, 2], 4, seed=1, logit_scale=logit_scale)
    found = level_similarity(texts, videos, coalitions=presence)
    rounded = level_similarity(*(level.map(to_single) for level in (texts, videos)), coalitions=presence)
    for text, video in [(0, 0), (0, 1), (1, 2), (2, 3), (2, 0)]:
        expected = brute_force_expectation(*pair_of(texts, videos, text, video), presence)
        # All places are looked at unless they are nearly certain to be of no use.
        tolerance = 1e-11 if most_places(presence) >= 5 else 2 * LEFT_OUT
        assert abs(found[text, video] - expected) < tolerance
        assert abs(rounded[text, video] - expected) < max(tolerance, 2e-5)


def to_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("presence", [0.5, 0.2])
def test_equals_the_mean_of_drawn_coalitions_of_a_long_caption(presence: float) -> None:
    texts, videos = random_level([24], 24, seed=2), random_level([12], 12, seed=3)
    cosines, word_logits, frame_logits = pair_of(texts, videos, 0, 0)
    generator = torch.Generator().manual_seed(4)
    members = torch.rand(20_000, 36, generator=generator) < presence
    members = members[members[:, :24].any(dim=1) & members[:, 24:].any(dim=1)]
    values = coalition_values(cosines, word_logits, frame_logits, members[:, :24], members[:, 24:])
    error = values.std() / len(values) ** 0.5
    assert abs(level_similarity(texts, videos, coalitions=presence)[0, 0] - values.mean()) < 4 * error
    assert error < 2e-3


def test_is_the_plain_similarity_when_all_join() -> None:
    texts, videos = random_level([5, 2, 4], 5, seed=0), random_level([3, 1, 4], 4, seed=1)
    torch.testing.assert_close(level_similarity(texts, videos, coalitions=1.0), level_similarity(texts, videos))
    nearly = level_similarity(texts, videos, coalitions=1 - 1e-9)
    torch.testing.assert_close(nearly, level_similarity(texts, videos), rtol=0, atol=1e-7)


def test_weights_at_one_half_are_the_diagonal_of_the_gains_of_the_interaction() -> None:
    level = random_level([24, 7, 1], 24, seed=5, logit_scale=3.0)
    diagonal = weight_gains(level.logits, level.mask).diagonal(dim1=-2, dim2=-1) * level.mask
    expected = diagonal / diagonal.sum(dim=1, keepdim=True)
    torch.testing.assert_close(expected_weights(level.logits, level.mask, 0.5), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("presence", [0.05, 0.5, 0.99])
def test_single_precision_holds_at_sixty_four_tokens(presence: float) -> None:
    level = random_level([64, 20], 64, seed=6, logit_scale=4.0)
    exact = expected_weights(level.logits, level.mask, presence)
    torch.testing.assert_close(exact.sum(dim=1), torch.ones(2, dtype=exact.dtype))
    single = level.logits.float().requires_grad_()
    weights = expected_weights(single, level.mask, presence)
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=1e-5)
    weights.square().sum().backward()
    assert single.grad is not None and single.grad.isfinite().all()


@pytest.mark.parametrize("max_tile_elements", [1, 45, 10**6])
def test_tiles_change_neither_values_nor_gradients(max_tile_elements: int) -> None:
    results = []
    for size in (max_tile_elements, 10**9):
        texts, videos = random_level([5, 2, 4], 5, seed=0), random_level([3, 1, 4, 2], 4, seed=1)
        leaves = [leaf.requires_grad_() for level in (texts, videos) for leaf in (level.features, level.logits)]
        similarity = level_similarity(texts, videos, coalitions=0.5, max_tile_elements=size)
        similarity.square().sum().backward()
        results.append([similarity.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.slow
@pytest.mark.parametrize("presence", [0.3, 0.5])
def test_gradients_are_those_of_finite_differences(presence: float) -> None:
    texts, videos = random_level([3, 2], 3, seed=7), random_level([2, 1], 2, seed=8)

    def similarity(words: Tensor, word_logits: Tensor, frames: Tensor, frame_logits: Tensor) -> Tensor:
        return level_similarity(
            TokenLevel(words, texts.mask, word_logits),
            TokenLevel(frames, videos.mask, frame_logits),
            coalitions=presence,
        )

    leaves = [leaf.requires_grad_() for level in (texts, videos) for leaf in (level.features, level.logits)]
    assert torch.autograd.gradcheck(similarity, leaves)


def test_padding_takes_no_part() -> None:
    texts, videos = random_level([5, 2, 4], 5, seed=0), random_level([3, 1, 4, 2], 4, seed=1)
    filled = TokenLevel(
        torch.where(texts.mask[:, :, None], texts.features, 50.0),
        texts.mask,
        torch.where(texts.mask, texts.logits, torch.nan),
    )
    for one, other in ((filled, videos), (videos, filled)):
        plain = (texts, videos) if one is filled else (videos, texts)
        torch.testing.assert_close(
            level_similarity(one, other, coalitions=0.5), level_similarity(*plain, coalitions=0.5)
        )
    cut = videos.map(lambda part: part[3:, :2])
    torch.testing.assert_close(
        level_similarity(texts, cut, coalitions=0.5)[:, 0], level_similarity(texts, videos, coalitions=0.5)[:, 3]
    )


def test_an_item_without_tokens_matches_nothing_and_one_that_diverged_gives_nan() -> None:
    texts, videos = random_level([2, 3], 3, seed=0), random_level([0, 2, 1], 2, seed=1)
    leaves = [leaf.requires_grad_() for leaf in (videos.features, videos.logits)]
    similarity = level_similarity(texts, videos, coalitions=0.5)
    assert similarity[:, 0].tolist() == [0, 0]
    similarity.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    logits = videos.logits.detach().clone()
    logits[1, 0] = torch.inf
    diverged = level_similarity(texts, TokenLevel(videos.features, videos.mask, logits), coalitions=0.5)
    assert diverged.isnan().tolist() == [[False, True, False]] * 2


def test_the_places_left_out_cost_no_more_than_promised() -> None:
    generator = torch.Generator().manual_seed(9)
    values = torch.rand(200, 64, generator=generator, dtype=torch.float64) * 2 - 1
    mask = torch.ones(1, 64, dtype=torch.bool)
    for presence in (0.3, 0.5, 0.8):
        ordered = values.sort(dim=1, descending=True).values
        whole = presence * (1 - presence) ** torch.arange(64, dtype=values.dtype)
        expected = ordered @ (whole / whole.sum())
        found = expected_maxima(values, place_weights(mask, presence, values.dtype))
        assert (found - expected).abs().max() <= 2 * LEFT_OUT
        assert most_places(presence) < 64


def test_training_keeps_the_places_in_bytes_and_not_the_cosines() -> None:
    cosines = torch.randn(3, 5, 4, 40, requires_grad=True)
    weights = place_weights(torch.ones(4, 40, dtype=torch.bool), 0.5)
    saved = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = expected_maxima(cosines, weights)
    torch.testing.assert_close(found, expected_maxima(cosines.detach(), weights))
    assert sum(tensor.numel() * tensor.element_size() for tensor in saved) <= 3 * 5 * 4 * 14 + 4 * 14 * 4


def test_probabilities_that_are_none_are_refused() -> None:
    level = random_level([2], 2, seed=0)
    for presence in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="probability"):
            level_similarity(level, level, coalitions=presence)
    with pytest.raises(ValueError, match="zero_floor"):
        level_similarity(level, level, coalitions=0.5, zero_floor=True)


def test_weights_of_all_who_join_lie_between_the_softmax_and_equal_shares() -> None:
    level = random_level([6], 6, seed=3, logit_scale=2.0)
    plain, expected = token_weights(level), token_weights(level, 0.5)
    assert expected.max() < plain.max()
    assert expected.min() > plain.min()
