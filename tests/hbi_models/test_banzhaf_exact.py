"""The closed form against enumeration, an independent library, and the axioms of the index."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hbi_models.banzhaf.exact import NonFiniteLogitsError, exact_interaction, require_finite, weight_gains
from hbi_models.banzhaf.game import brute_force_interaction, coalition_values
from tests.absent_device import ABSENT, absent_device, values
from tests.hbi_models.banzhaf_games import Game, random_game

# The largest error seen over 2,000 games of up to eight players is 1e-13; similarities are of order 1.
FLOAT64_ERROR = 1e-11
# Similarities and logits carry seven digits.
FLOAT32_ERROR = 1e-5

GAMES = st.builds(
    random_game,
    pairs=st.just(3),
    words=st.integers(1, 4),
    frames=st.integers(1, 4),
    logit_scale=st.sampled_from([0.0, 0.3, 3.0, 30.0, 1e4]),
    padded=st.booleans(),
    seed=st.integers(0, 2**16),
)
SIZES_UP_TO_NINE_PLAYERS = [(words, frames) for words in range(1, 9) for frames in range(1, 10 - words)]


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual - expected).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("logit_scale", [0.0, 1.0, 3.0, 10.0, 100.0, 1e4])
def test_equals_enumeration_for_every_size_up_to_nine_players(logit_scale: float) -> None:
    for words, frames in SIZES_UP_TO_NINE_PLAYERS:
        game = random_game(words=words, frames=frames, logit_scale=logit_scale, padded=True, seed=words)
        rounded = game.to(torch.float32)
        error = largest_error(exact_interaction(*game), brute_force_interaction(*game))
        assert error < FLOAT64_ERROR, (words, frames)
        reference = brute_force_interaction(*rounded.to(torch.float64))
        error = largest_error(exact_interaction(*rounded), reference)
        assert error < FLOAT32_ERROR, (words, frames)


@pytest.mark.parametrize(("words", "frames"), [(2, 2), (5, 2), (3, 4)])
def test_equals_the_banzhaf_interaction_index_of_shapiq(words: int, frames: int) -> None:
    import shapiq  # takes seconds, in every process that collects tests

    game = random_game(pairs=1, words=words, frames=frames, logit_scale=4.0, seed=frames)

    def value(coalitions: object) -> object:
        members = torch.as_tensor(coalitions, dtype=torch.bool)
        parts = (part[0] for part in game[:3])
        return coalition_values(*parts, members[:, :words], members[:, words:]).numpy()

    index = shapiq.ExactComputer(game=value, n_players=words + frames)(index="BII", order=2)
    expected = [[[index[(word, words + frame)] for frame in range(frames)] for word in range(words)]]
    assert largest_error(exact_interaction(*game), torch.tensor(expected, dtype=torch.float64)) < FLOAT64_ERROR


@pytest.mark.parametrize("logit_scale", [1.0, 10.0, 1e3])
def test_single_precision_holds_at_sixty_four_words_and_frames(logit_scale: float) -> None:
    rounded = random_game(pairs=2, words=64, frames=64, logit_scale=logit_scale, padded=True).to(torch.float32)
    reference = exact_interaction(*rounded.to(torch.float64))
    assert largest_error(exact_interaction(*rounded), reference) < FLOAT32_ERROR


@pytest.mark.slow
@given(game=GAMES)
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing_and_has_no_interaction(game: Game) -> None:
    dirty = Game(
        game.similarity.masked_fill(~game.present, torch.nan),
        game.word_logits.masked_fill(~game.word_mask, torch.inf),
        game.frame_logits.masked_fill(~game.frame_mask, torch.nan),
        game.word_mask,
        game.frame_mask,
    )
    interaction = exact_interaction(*dirty)
    assert (interaction[~game.present] == 0).all()
    for pair in range(len(game.similarity)):
        words, frames = int(game.word_mask[pair].sum()), int(game.frame_mask[pair].sum())
        alone = exact_interaction(
            game.similarity[pair : pair + 1, :words, :frames],
            game.word_logits[pair : pair + 1, :words],
            game.frame_logits[pair : pair + 1, :frames],
            game.word_mask[pair : pair + 1, :words],
            game.frame_mask[pair : pair + 1, :frames],
        )
        assert largest_error(interaction[pair, :words, :frames], alone[0]) < FLOAT64_ERROR


@given(game=GAMES, seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_permuting_words_and_frames_permutes_the_interaction(game: Game, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randperm(game.similarity.shape[1], generator=generator)
    frames = torch.randperm(game.similarity.shape[2], generator=generator)
    permuted = exact_interaction(
        game.similarity[:, words][:, :, frames],
        game.word_logits[:, words],
        game.frame_logits[:, frames],
        game.word_mask[:, words],
        game.frame_mask[:, frames],
    )
    expected = exact_interaction(*game)[:, words][:, :, frames]
    assert largest_error(permuted, expected) < FLOAT64_ERROR


@given(game=GAMES, factor=st.floats(1e-3, 1e3), constant=st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_scales_with_similarities_and_ignores_a_constant_in_the_logits(
    game: Game, factor: float, constant: float
) -> None:
    changed = exact_interaction(
        factor * game.similarity, game.word_logits + constant, game.frame_logits - constant, *game[3:]
    )
    assert largest_error(changed / factor, exact_interaction(*game)) < FLOAT64_ERROR


@given(game=GAMES)
@settings(max_examples=40, deadline=None)
def test_swapping_words_and_frames_transposes_the_interaction(game: Game) -> None:
    swapped = exact_interaction(
        game.similarity.mT, game.frame_logits, game.word_logits, game.frame_mask, game.word_mask
    )
    assert largest_error(swapped.mT, exact_interaction(*game)) < FLOAT64_ERROR


def test_one_word_and_one_frame_interact_by_their_similarity() -> None:
    game = random_game(words=1, frames=1, logit_scale=10.0)
    assert largest_error(exact_interaction(*game), game.similarity) < FLOAT64_ERROR


def test_a_frame_that_never_matters_has_no_interaction() -> None:
    game = random_game(words=3, frames=3)
    game.similarity.abs_()
    game.similarity[:, :, 1] = 0
    game.frame_logits[:, 1] = -1e5
    interaction = exact_interaction(*game)
    assert interaction[:, :, 1].abs().max().item() < FLOAT64_ERROR
    assert interaction[:, :, 0].abs().max().item() > 0.1


def test_tied_similarities_are_counted_once() -> None:
    game = random_game(words=4, frames=4, padded=True, seed=3)
    tied = game._replace(similarity=game.similarity.round())
    assert any(len(row.unique()) < len(row) for row in tied.similarity.flatten(0, 1))
    assert largest_error(exact_interaction(*tied), brute_force_interaction(*tied)) < FLOAT64_ERROR


def test_weight_gains_sum_to_the_probability_of_an_empty_set() -> None:
    game = random_game(words=6, frames=1, logit_scale=5.0, padded=True)
    sums = weight_gains(game.word_logits, game.word_mask).sum(dim=-1)
    expected = torch.exp2(1.0 - game.word_mask.sum(dim=-1, keepdim=True)).expand_as(sums)
    assert largest_error(sums[game.word_mask], expected[game.word_mask]) < FLOAT64_ERROR


@pytest.mark.parametrize("logit_scale", [1.0, 60.0])
def test_gradients_equal_finite_differences(logit_scale: float) -> None:
    game = random_game(pairs=2, words=3, frames=3, logit_scale=logit_scale, padded=True, seed=1)
    parts = [part.requires_grad_() for part in game[:3]]
    assert torch.autograd.gradcheck(lambda *inputs: exact_interaction(*inputs, *game[3:]), parts)


def test_gradients_stay_finite_where_a_pair_is_all_padding() -> None:
    game = random_game(pairs=2, words=3, frames=3).to(torch.float32)
    game.frame_mask[1] = False
    parts = [part.requires_grad_() for part in game[:3]]
    interaction = exact_interaction(*parts, *game[3:])
    interaction.square().sum().backward()
    assert (interaction[1] == 0).all()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)


@pytest.mark.parametrize(("words", "frames"), [(127, 2), (128, 2), (129, 2), (2, 200)])
def test_gradients_stay_right_where_a_side_has_more_tokens_than_the_type_has_powers_of_two(
    words: int, frames: int
) -> None:
    game = random_game(pairs=2, words=words, frames=frames)
    game.word_mask[1, 1:] = False
    weights = torch.randn(game.similarity.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for dtype in (torch.float32, torch.float64):
        parts = [part.to(dtype, copy=True).requires_grad_() for part in game[:3]]
        loss = (exact_interaction(*parts, *game[3:]) * weights.to(dtype)).sum()
        found.append(torch.autograd.grad(loss, parts))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=0, atol=FLOAT32_ERROR * double.abs().max().item())


def test_inputs_are_not_modified_and_autocast_does_not_lower_the_precision() -> None:
    game = random_game(words=3, frames=3).to(torch.float32)
    copies = [part.clone() for part in game]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = exact_interaction(*game)
    assert all(torch.equal(part, copy) for part, copy in zip(game, copies, strict=True))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact_interaction(*game))


def test_half_precision_inputs_are_computed_in_single() -> None:
    game = random_game(words=3, frames=3).to(torch.bfloat16)
    expected = exact_interaction(*game.to(torch.float32))
    assert torch.equal(exact_interaction(*game), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    game = random_game(words=3, frames=3)
    game.frame_logits[1, 2] = bad
    with pytest.raises(ValueError, match="logits of the Banzhaf game hold NaN or infinity"):
        exact_interaction(*game)


@pytest.mark.slow
@pytest.mark.parametrize("logit_scale", [0.0, 1.0, 10.0, 100.0, 1e4])
def test_on_an_accelerator_it_asks_for_nothing_and_equals_enumeration(logit_scale: float) -> None:
    for words, frames in ((1, 1), (1, 7), (7, 1), (4, 4), (6, 3)):
        game = random_game(words=words, frames=frames, logit_scale=logit_scale, padded=True, seed=words)
        rounded = game.to(torch.float32)
        for given_game, bound in ((game, FLOAT64_ERROR), (rounded, FLOAT32_ERROR)):
            reference = brute_force_interaction(*given_game.to(torch.float64))
            with absent_device() as journal:
                there = [part.to(ABSENT) for part in given_game]
                journal.clear()
                found = exact_interaction(*there)
                assert not journal.waits
            assert largest_error(values(found), reference) < bound, (words, frames, given_game[0].dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("gap", [0.1, 5.0, 100.0])
def test_many_tokens_in_company_of_much_larger_ones_count_as_on_the_cpu(
    dtype: torch.dtype, error: float, gap: float
) -> None:
    """What lies below more tokens than count is present without all of them in a rounding's share of coalitions."""
    tokens = 64
    logits = (-gap * torch.arange(float(tokens), dtype=torch.float64))[None]
    mask = torch.ones(1, tokens, dtype=torch.bool)
    expected = weight_gains(logits, mask)
    with absent_device():
        found = weight_gains(logits.to(ABSENT, dtype), mask.to(ABSENT))
    assert largest_error(values(found).double(), expected) < error


def test_on_an_accelerator_a_logit_that_is_not_finite_spoils_its_own_pair_alone() -> None:
    game = random_game(pairs=4, words=3, frames=4, padded=True, seed=1)
    expected = exact_interaction(*game)
    similarity, word_logits, frame_logits, word_mask, frame_mask = game
    word_logits, frame_logits = word_logits.clone(), frame_logits.clone()
    word_logits[0, 0], word_logits[1, 0], frame_logits[2, 0] = torch.nan, -torch.inf, torch.inf
    with absent_device():
        parts = (similarity, word_logits, frame_logits, word_mask, frame_mask)
        found = values(exact_interaction(*(part.to(ABSENT) for part in parts)))
    assert found[:3].isnan().all()
    torch.testing.assert_close(found[3], expected[3], rtol=0, atol=1e-12)
    require_finite(found[3])
    with pytest.raises(NonFiniteLogitsError):
        require_finite(found)
