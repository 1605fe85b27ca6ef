"""The brute-force Banzhaf interaction against a hand-made game and an independent library."""

from __future__ import annotations

import pytest
import torch

from hbi_models.banzhaf.game import brute_force_interaction, coalition_values, every_subset
from tests.hbi_models.banzhaf_games import Game, random_game


def test_coalition_values_of_a_game_worked_out_by_hand() -> None:
    similarity = torch.tensor([[0.6, 0.2], [-0.4, 0.8]], dtype=torch.float64)
    word_logits = torch.tensor([0.0, 1.0], dtype=torch.float64).log1p()  # weights 1 : 2
    frame_logits = torch.tensor([0.0, 0.0], dtype=torch.float64)
    words = torch.tensor([[True, True], [False, True], [True, True], [False, False], [True, False]])
    frames = torch.tensor([[True, True], [True, False], [True, False], [True, True], [False, False]])

    values = coalition_values(similarity, word_logits, frame_logits, words, frames)

    everybody = ((0.6 + 2 * 0.8) / 3 + (0.6 + 0.8) / 2) / 2
    second_word_first_frame = -0.4
    both_words_first_frame = ((0.6 + 2 * -0.4) / 3 + 0.6) / 2
    expected = [everybody, second_word_first_frame, both_words_first_frame, 0.0, 0.0]
    assert values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("words", "frames"), [(1, 1), (1, 3), (3, 2), (4, 3)])
def test_brute_force_equals_the_banzhaf_interaction_index_of_shapiq(words: int, frames: int) -> None:
    import shapiq  # takes seconds, in every process that collects tests

    game = random_game(pairs=1, words=words, frames=frames, logit_scale=2.0, seed=words)

    def value(coalitions: object) -> object:
        members = torch.as_tensor(coalitions, dtype=torch.bool)
        parts = (part[0] for part in game[:3])
        return coalition_values(*parts, members[:, :words], members[:, words:]).numpy()

    index = shapiq.ExactComputer(game=value, n_players=words + frames)(index="BII", order=2)
    expected = [[index[(word, words + frame)] for frame in range(frames)] for word in range(words)]
    actual = brute_force_interaction(*game)[0]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_padding_is_not_a_player() -> None:
    small = random_game(pairs=1, words=3, frames=2)
    padded = Game(
        torch.full((1, 4, 4), torch.nan, dtype=torch.float64),
        torch.full((1, 4), torch.nan, dtype=torch.float64),
        torch.full((1, 4), torch.nan, dtype=torch.float64),
        torch.tensor([[True, True, False, True]]),
        torch.tensor([[False, True, False, True]]),
    )
    words, frames = padded.word_mask[0].nonzero()[:, 0], padded.frame_mask[0].nonzero()[:, 0]
    padded.similarity[0, words[:, None], frames] = small.similarity[0]
    padded.word_logits[0, words] = small.word_logits[0]
    padded.frame_logits[0, frames] = small.frame_logits[0]

    interaction = brute_force_interaction(*padded)

    assert torch.equal(interaction[0, words[:, None], frames], brute_force_interaction(*small)[0])
    assert (interaction[~padded.present] == 0).all()


def test_too_many_players_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"12 words and 9 frames are 21 players.*use exact_interaction"):
        brute_force_interaction(*random_game(pairs=1, words=12, frames=9))


def test_every_subset_lists_each_once_in_binary_order() -> None:
    subsets = every_subset(3)
    assert subsets.shape == (8, 3)
    assert subsets[6].tolist() == [False, True, True]
    assert len(subsets.unique(dim=0)) == 8
