"""The labels of the published sampling: its game, its expectation, and the sampling itself.

The published estimator was trained on these numbers, which are not the Banzhaf interaction of
``game.py``. One draw for word i and frame j keeps every other word and frame with probability
1/2 (the sets A and C) and takes J - v(A + i, C) - v(A, C + j) + v(A, C), where

- similarities are cosines times 1000, and absent cells are zeros that take part in the maxima;
- the importance "logits" are already softmax weights, so that the weights pass a second softmax;
- the joint term J is not v(A + i, C + j): it restores only the cell (i, j), and its logits are
  the softmaxed weights of A and of C next to the raw weights of i and of j.

The label is the mean of 100 draws. Its expectation factors like the exact interaction does: the
weights depend on A (or C) alone and the maxima on C (or A) alone. ``published_labels`` computes
it; ``sample_published_labels`` draws it.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from hbi_models.banzhaf.exact import maximum_gains
from hbi_models.banzhaf.game import every_subset
from hbi_models.configs import PUBLISHED_SCALE
from hbi_models.transfer import sent

PUBLISHED_DRAWS = 100

# Subsets are taken in blocks, to bound the grid of pairs x subsets x members x tokens.
GRID_CELLS = 2**23


@torch.no_grad()
def published_labels(
    similarity: Float[Tensor, "pairs words frames"],
    word_weights: Float[Tensor, "pairs words"],
    frame_weights: Float[Tensor, "pairs frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
    *,
    scale: float = PUBLISHED_SCALE,
    most_subsets: int = 4096,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "pairs words frames"]:
    """Returns the expectation of the published label of every word and frame, 0 at padding.

    ``similarity`` holds cosines; ``word_weights`` and ``frame_weights`` are softmax weights over
    the real tokens; the labels have the units of ``scale`` times the similarity. The maxima are
    averaged over all subsets in closed form. The weights are averaged over all subsets of at most
    log2(``most_subsets``) tokens, which is exact, and for more tokens over ``most_subsets``
    subsets drawn from ``generator``, the same for all pairs and cells. With a generator on the CPU
    they are the same on every device.

    Raises:
        ValueError: there are more tokens than that, and no generator is given.
    """
    present = word_mask[:, :, None] & frame_mask[:, None, :]
    payoffs = (scale * similarity).masked_fill(~present, 0)
    transposed = rearrange(payoffs, "pairs words frames -> pairs frames words")
    words = _subsets(word_mask.shape[1], most_subsets, word_mask.device, generator)
    frames = _subsets(frame_mask.shape[1], most_subsets, frame_mask.device, generator)
    through_words = _expected_half(payoffs, word_weights, word_mask, frame_mask, words)
    through_frames = _expected_half(transposed, frame_weights, frame_mask, word_mask, frames)
    labels = (through_words + rearrange(through_frames, "pairs frames words -> pairs words frames")) / 2
    return labels.masked_fill(~present, 0)


@torch.no_grad()
def sample_published_labels(
    similarity: Float[Tensor, "pairs words frames"],
    word_weights: Float[Tensor, "pairs words"],
    frame_weights: Float[Tensor, "pairs frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
    *,
    generator: torch.Generator,
    scale: float = PUBLISHED_SCALE,
    num_draws: int = PUBLISHED_DRAWS,
) -> Float[Tensor, "pairs words frames"]:
    """Returns the published label by Monte Carlo, 0 at padding: the mean of ``num_draws`` draws per cell.

    Subsets are drawn separately for every cell, draw and pair, as published; one draw is vectorised over the pairs.
    This is slow, and exists only for comparison.
    """
    labels = torch.zeros_like(similarity)
    for word in range(similarity.shape[1]):
        for frame in range(similarity.shape[2]):
            labels[:, word, frame] = sample_published_cell(
                similarity,
                word_weights,
                frame_weights,
                word_mask,
                frame_mask,
                word=word,
                frame=frame,
                generator=generator,
                scale=scale,
                num_draws=num_draws,
            )
    return labels.masked_fill(~(word_mask[:, :, None] & frame_mask[:, None, :]), 0)


@torch.no_grad()
def sample_published_cell(
    similarity: Float[Tensor, "pairs words frames"],
    word_weights: Float[Tensor, "pairs words"],
    frame_weights: Float[Tensor, "pairs frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
    *,
    word: int,
    frame: int,
    generator: torch.Generator,
    scale: float = PUBLISHED_SCALE,
    num_draws: int = PUBLISHED_DRAWS,
) -> Float[Tensor, " pairs"]:
    """Returns ``sample_published_labels`` of one word and one frame; values are meaningless if either is padding."""
    total = similarity.new_zeros(len(similarity))
    for _ in range(num_draws):
        kept_words = sent(_draw(word_mask.shape, generator), word_mask.device)
        kept_frames = sent(_draw(frame_mask.shape, generator), frame_mask.device)
        total += value_of_draw(
            scale * similarity,
            word_weights,
            frame_weights,
            word_mask & kept_words,
            frame_mask & kept_frames,
            word=word,
            frame=frame,
        )
    return total / num_draws


def value_of_draw(
    payoffs: Float[Tensor, "pairs words frames"],
    word_weights: Float[Tensor, "pairs words"],
    frame_weights: Float[Tensor, "pairs frames"],
    word_members: Bool[Tensor, "pairs words"],
    frame_members: Bool[Tensor, "pairs frames"],
    *,
    word: int,
    frame: int,
) -> Float[Tensor, " pairs"]:
    """Returns the published interaction of one word and one frame for one drawn coalition of each pair.

    ``payoffs`` are scaled similarities. Whether the word and the frame themselves are among the
    members makes no difference. The value is meaningless if either is padding.
    """
    without_word, with_word = _switched(word_members, word, False), _switched(word_members, word, True)
    without_frame, with_frame = _switched(frame_members, frame, False), _switched(frame_members, frame, True)

    def value(words: Bool[Tensor, "pairs words"], frames: Bool[Tensor, "pairs frames"]) -> Float[Tensor, " pairs"]:
        return _payoff(_restricted(payoffs, words, frames), word_weights, frame_weights, words, frames)

    joint = _restricted(payoffs, without_word, without_frame)
    joint[:, word, frame] = payoffs[:, word, frame]
    joint_words = _softmax_over(word_weights, without_word)
    joint_words[:, word] = word_weights[:, word]
    joint_frames = _softmax_over(frame_weights, without_frame)
    joint_frames[:, frame] = frame_weights[:, frame]
    together = _payoff(joint, joint_words, joint_frames, with_word, with_frame)
    return (
        together
        - value(with_word, without_frame)
        - value(without_word, with_frame)
        + value(without_word, without_frame)
    )


def _expected_half(
    payoffs: Float[Tensor, "pairs rows columns"],
    weights: Float[Tensor, "pairs rows"],
    row_mask: Bool[Tensor, "pairs rows"],
    column_mask: Bool[Tensor, "pairs columns"],
    subsets: Bool[Tensor, "subsets rows"],
) -> Float[Tensor, "pairs rows columns"]:
    """Returns the expectation of the half in which rows carry the weights and columns give the maxima."""
    outside, inside, joint = _expected_weights(weights, row_mask, subsets)
    num_columns = payoffs.shape[-1]
    # Without column j some cell of the row is an absent zero: the maximum has a floor at 0.
    floored = payoffs.clamp(min=0)
    # The value at place k of a row, from 0, is its maximum with probability 2^-(k + 1).
    halvings = torch.exp2(-1.0 - torch.arange(num_columns, dtype=payoffs.dtype, device=payoffs.device))
    overall = (floored.sort(dim=-1, descending=True).values * halvings).sum(dim=-1, keepdim=True)
    gain = maximum_gains(floored, column_mask)
    # Half of the sets hold column j, and their maximum is larger by the gain on average.
    without_column = overall - gain / 2
    # With column j that floor is gone in the one set that holds every column, padding included.
    all_columns = column_mask.all(dim=-1)[:, None, None] * payoffs.amax(dim=-1, keepdim=True).clamp(max=0)
    gain = gain + all_columns * 2.0 ** (1 - num_columns)
    # The row of i holds the cell (i, j) alone in the joint term.
    own_weight = joint.diagonal(dim1=-2, dim2=-1)[:, :, None]
    # A row of one cell has no absent zero beside it.
    own_maximum = floored if num_columns > 1 else payoffs
    # J - v(A + i, C), then v(A, C + j) - v(A, C), where only the maxima differ.
    return (
        own_weight * own_maximum
        + (joint - torch.diag_embed(own_weight[:, :, 0]) - inside) @ without_column
        - outside @ gain
    )


def _expected_weights(
    weights: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"], subsets: Bool[Tensor, "subsets tokens"]
) -> tuple[
    Float[Tensor, "pairs members tokens"], Float[Tensor, "pairs members tokens"], Float[Tensor, "pairs members tokens"]
]:
    """Returns the mean weight of each token when member i is outside, inside, and the joint player."""
    pairs, tokens = weights.shape
    member = torch.eye(tokens, dtype=torch.bool, device=weights.device)
    raised = weights.exp()
    sums = [weights.new_zeros(pairs, tokens, tokens) for _ in range(3)]
    block = max(1, GRID_CELLS // max(1, pairs * tokens * tokens))
    for drawn in torch.split(subsets, block):
        others = (mask[:, None, :] & drawn)[:, :, None, :] & ~member
        outside = others * raised[:, None, None, :]
        total = outside.sum(dim=-1, keepdim=True)
        own = rearrange(raised, "pairs members -> pairs 1 members 1")
        # The weights of the empty set are 0 here. The published ones are uniform, but multiply payoffs of 0.
        softmaxed = outside / total.clamp(min=torch.finfo(total.dtype).tiny)
        joint = torch.where(others, softmaxed.exp(), member * own)
        inside = torch.where(member, own, outside) / (total + own)
        for total_weight, drawn_weight in zip(
            sums, (softmaxed, inside, joint / joint.sum(-1, keepdim=True)), strict=True
        ):
            total_weight += drawn_weight.sum(dim=1)
    outside_mean, inside_mean, joint_mean = (total_weight / len(subsets) for total_weight in sums)
    return outside_mean, inside_mean, joint_mean


def _subsets(
    num_tokens: int, most_subsets: int, device: torch.device, generator: torch.Generator | None
) -> Bool[Tensor, "subsets tokens"]:
    """Returns every subset of the tokens if there are at most ``most_subsets``, otherwise that many drawn ones."""
    if 2**num_tokens <= most_subsets:
        return every_subset(num_tokens, device)
    if generator is None:
        raise ValueError(
            f"{num_tokens} tokens have 2^{num_tokens} subsets, more than most_subsets = {most_subsets}, and are "
            "averaged over drawn ones: pass a torch.Generator, or raise most_subsets"
        )
    drawn = sent(_draw((most_subsets // 2, num_tokens), generator), device)
    # A set and its complement are equally likely; together they have no error in the set's size.
    return torch.cat([drawn, ~drawn])


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Bool[Tensor, "sets tokens"]:
    return torch.randint(2, shape, generator=generator, device=generator.device, dtype=torch.bool)


def _payoff(
    payoffs: Float[Tensor, "pairs words frames"],
    word_logits: Float[Tensor, "pairs words"],
    frame_logits: Float[Tensor, "pairs frames"],
    word_members: Bool[Tensor, "pairs words"],
    frame_members: Bool[Tensor, "pairs frames"],
) -> Float[Tensor, " pairs"]:
    through_words = (_softmax_over(word_logits, word_members) * payoffs.amax(dim=2)).sum(dim=1)
    through_frames = (_softmax_over(frame_logits, frame_members) * payoffs.amax(dim=1)).sum(dim=1)
    return (through_words + through_frames) / 2


def _softmax_over(
    logits: Float[Tensor, "pairs tokens"], members: Bool[Tensor, "pairs tokens"]
) -> Float[Tensor, "pairs tokens"]:
    """Returns the softmax over the members and 0 elsewhere; uniform over all tokens without members."""
    return logits.masked_fill(~members, torch.finfo(logits.dtype).min).softmax(dim=-1)


def _restricted(
    payoffs: Float[Tensor, "pairs words frames"],
    word_members: Bool[Tensor, "pairs words"],
    frame_members: Bool[Tensor, "pairs frames"],
) -> Float[Tensor, "pairs words frames"]:
    return payoffs.masked_fill(~(word_members[:, :, None] & frame_members[:, None, :]), 0)


def _switched(members: Bool[Tensor, "pairs tokens"], token: int, present: bool) -> Bool[Tensor, "pairs tokens"]:
    switched = members.clone()
    switched[:, token] = present
    return switched
