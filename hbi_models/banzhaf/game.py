"""The cooperative game of the words of a caption and the frames of a video.

The value of a coalition of words and frames is the weighted token-wise interaction (Wang et al., arXiv 2203.07111)
restricted to it. The Banzhaf interaction of a word and a frame is the value that the two add together, beyond what each
adds alone, on average over all coalitions (Jin et al., arXiv 2303.14369, section 3.2). This module follows the
definitions and enumerates every coalition; ``exact.py`` computes the same without enumerating.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hbi_models.config_fields import require

# 2^20 coalitions of a pair are a few hundred megabytes and a few seconds.
MOST_PLAYERS = 20


def coalition_values(
    similarity: Float[Tensor, "words frames"],
    word_logits: Float[Tensor, " words"],
    frame_logits: Float[Tensor, " frames"],
    word_members: Bool[Tensor, "coalitions words"],
    frame_members: Bool[Tensor, "coalitions frames"],
) -> Float[Tensor, " coalitions"]:
    """Returns the value of each coalition of one pair, in the units of ``similarity``.

    With C_T and C_V the words and frames of the coalition, and a and b their importance logits,

        F = 1/2 sum_{t in C_T} softmax_{C_T}(a)_t max_{v in C_V} s_tv
          + 1/2 sum_{v in C_V} softmax_{C_V}(b)_v max_{t in C_T} s_tv,

    and F = 0 when C_T or C_V is empty.
    """
    through_words = _weighted_maxima(similarity, word_logits, word_members, frame_members)
    through_frames = _weighted_maxima(similarity.T, frame_logits, frame_members, word_members)
    return (through_words + through_frames) / 2


def brute_force_interaction(
    similarity: Float[Tensor, "pairs words frames"],
    word_logits: Float[Tensor, "pairs words"],
    frame_logits: Float[Tensor, "pairs frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
) -> Float[Tensor, "pairs words frames"]:
    """Returns the Banzhaf interaction by enumerating every coalition; 0 at padding.

    For word i and frame j it is the mean, over all coalitions C of the other players, of
    F(C + i + j) - F(C + i) - F(C + j) + F(C) (Grabisch and Roubens, 1999). Padding is not a
    player.

    Raises:
        ValueError: a pair has more than ``MOST_PLAYERS`` players.
    """
    interaction = torch.zeros_like(similarity)
    for pair in range(similarity.shape[0]):
        words, frames = word_mask[pair].nonzero()[:, 0], frame_mask[pair].nonzero()[:, 0]
        interaction[pair, words[:, None], frames] = _interaction_of_pair(
            similarity[pair][words[:, None], frames], word_logits[pair, words], frame_logits[pair, frames]
        )
    return interaction


def brute_force_expectation(
    similarity: Float[Tensor, "words frames"],
    word_logits: Float[Tensor, " words"],
    frame_logits: Float[Tensor, " frames"],
    presence: float,
) -> Float[Tensor, ""]:
    """Returns the expected value of a random coalition of one pair, given that it holds a word and a frame.

    Every player joins with probability ``presence``; all are real. Every coalition is enumerated.

    Raises:
        ValueError: there are more than ``MOST_PLAYERS`` players.
    """
    num_words, num_frames = similarity.shape
    _require_few(num_words, num_frames, "level_similarity")
    members = every_subset(num_words + num_frames, similarity.device)
    values = coalition_values(similarity, word_logits, frame_logits, members[:, :num_words], members[:, num_words:])
    joins, stays = values.new_full((), presence), values.new_full((), 1 - presence)
    joining = torch.where(members, joins, stays).prod(dim=1)
    both = members[:, :num_words].any(dim=1) & members[:, num_words:].any(dim=1)
    return (joining * values).sum() / joining[both].sum()


def every_subset(num_players: int, device: torch.device | None = None) -> Bool[Tensor, "subsets players"]:
    """Returns the members of all 2^n subsets; bit p of a row's index tells whether player p is in."""
    indices = torch.arange(2**num_players, device=device)
    return (indices[:, None] >> torch.arange(num_players, device=device)) % 2 == 1


def _interaction_of_pair(
    similarity: Float[Tensor, "words frames"],
    word_logits: Float[Tensor, " words"],
    frame_logits: Float[Tensor, " frames"],
) -> Float[Tensor, "words frames"]:
    num_words, num_frames = similarity.shape
    _require_few(num_words, num_frames, "exact_interaction")
    members = every_subset(num_words + num_frames, similarity.device)
    values = coalition_values(similarity, word_logits, frame_logits, members[:, :num_words], members[:, num_words:])
    coalitions = torch.arange(len(members), device=similarity.device)
    interaction = torch.zeros_like(similarity)
    for word in range(num_words):
        for frame in range(num_frames):
            # A player joins a coalition when its bit is added to the coalition's index (``every_subset``).
            with_word, with_frame = 1 << word, 1 << (num_words + frame)
            others = coalitions[~members[:, word] & ~members[:, num_words + frame]]
            together = values[others + with_word + with_frame] + values[others]
            apart = values[others + with_word] + values[others + with_frame]
            interaction[word, frame] = (together - apart).mean()
    return interaction


def _require_few(num_words: int, num_frames: int, instead: str) -> None:
    players = num_words + num_frames
    require(
        players <= MOST_PLAYERS,
        f"{num_words} words and {num_frames} frames are {players} players, whose 2^{players} coalitions are "
        f"too many to enumerate; use {instead} above {MOST_PLAYERS} players",
    )


def _weighted_maxima(
    values: Float[Tensor, "rows columns"],
    row_logits: Float[Tensor, " rows"],
    row_members: Bool[Tensor, "coalitions rows"],
    column_members: Bool[Tensor, "coalitions columns"],
) -> Float[Tensor, " coalitions"]:
    """Returns the softmax-weighted mean over the member rows of each row's largest member column."""
    is_empty = ~(row_members.any(dim=1) & column_members.any(dim=1))
    weights = row_logits.expand(len(row_members), -1).masked_fill(~row_members, -torch.inf).softmax(dim=1)
    maxima = values.expand(len(row_members), -1, -1).masked_fill(~column_members[:, None, :], -torch.inf).amax(dim=2)
    # Up to here empty coalitions have NaN weights or infinite maxima.
    return (weights * maxima).sum(dim=1).masked_fill(is_empty, 0)
