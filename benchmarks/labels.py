"""Exact labels of word-frame interactions against sampling: as published, and as well as it can be done.

The published sampling plays a slightly different game (``hbi_models/banzhaf/published.py``): it is compared with its
own expectation, the exact labels with enumeration, and the sampling of the exact labels' game with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import ResultsDifferError, Row, Target, in_turns, ratios, scaled
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.banzhaf.game import brute_force_interaction
from hbi_models.banzhaf.published import (
    PUBLISHED_DRAWS,
    published_labels,
    sample_published_cell,
    sample_published_labels,
)

Game = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Similarity, word and frame logits, word and frame mask."""

PAIRS = 128
SIZES = {(24, 12): (6, 1024), (64, 64): (1, 128)}
"""Words and frames: cells of a pair that the published sampling is timed on, draws of the vectorised sampling."""
TIMES = 3
EXACT_CALLS = 25
LARGEST_ERROR = 1e-5
"""Of float32 against enumeration, similarities in [-1, 1]."""
LARGEST_SCORE = 1.5
"""Of sampled labels' distance from their expectations to its standard error, root mean squares: 1 by chance."""
BLOCK_DRAWS = 16
"""Of the vectorised sampling, at once."""
RELATIVE_ERROR = 0.01
"""Standard error that the vectorised sampling is run to, relative to the labels' standard deviation."""


def random_game(
    pairs: int, words: int, frames: int, *, logit_scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Game:
    """Similarities in [-1, 1] and normal logits, without padding."""
    generator = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.rand(pairs, words, frames, generator=generator, dtype=dtype) - 1
    word_logits = logit_scale * torch.randn(pairs, words, generator=generator, dtype=dtype)
    frame_logits = logit_scale * torch.randn(pairs, frames, generator=generator, dtype=dtype)
    return (
        similarity,
        word_logits,
        frame_logits,
        torch.ones_like(word_logits).bool(),
        torch.ones_like(frame_logits).bool(),
    )


def with_softmax_weights(game: Game) -> Game:
    """The game as the published code plays it: softmax weights take the place of the logits."""
    similarity, word_logits, frame_logits, *masks = game
    return (similarity, word_logits.softmax(dim=-1), frame_logits.softmax(dim=-1), masks[0], masks[1])


def check_exact_labels() -> None:
    """Against enumeration, over every size up to nine players.

    Raises:
        ResultsDifferError: they differ by more than rounding.
    """
    for scale in (1, 3, 10):
        for words in range(1, 9):
            for frames in range(1, 10 - words):
                game = random_game(4, words, frames, logit_scale=scale, seed=words)
                double = tuple(part.double() if part.is_floating_point() else part for part in game)
                error = float((exact_interaction(*game) - brute_force_interaction(*double)).abs().max())
                if not error <= LARGEST_ERROR:
                    raise ResultsDifferError(f"exact labels of {words} words, {frames} frames are wrong by {error:.1e}")


def check_published_sampling() -> None:
    """Against its expectation; the repetitions of one small game give the standard error.

    Raises:
        ResultsDifferError: they are too many standard errors apart.
    """
    repetitions = 256
    game = with_softmax_weights(random_game(1, 4, 3, dtype=torch.float64))
    expected = published_labels(*game)[0]
    repeated = [part.expand(repetitions, *part.shape[1:]).contiguous() for part in game]
    sampled = sample_published_labels(*repeated, generator=torch.Generator().manual_seed(0))
    check_scores("the published sampling", sampled.mean(dim=0) - expected, sampled.std(dim=0) / repetitions**0.5)


def check_scores(what: str, difference: Tensor, standard_error: Tensor) -> None:
    """Raises ``ResultsDifferError`` where a mean is further from its expectation than chance explains."""
    score = float(difference.square().mean().sqrt() / standard_error.square().mean().sqrt())
    if not score <= LARGEST_SCORE:
        raise ResultsDifferError(f"{what}: {score:.1f} standard errors from the expectation")


def sampled_moments(
    game: Game, draws: int, generator: torch.Generator, *, block: int = BLOCK_DRAWS
) -> tuple[Tensor, Tensor]:
    """Mean and mean square of one draw's interaction of every word and frame, of a game without padding.

    A draw is a set of words and a set of frames, kept with probability 1/2 each. With i and j in and out of it, it
    gives an interaction for every cell at once: what word i changes in the weights times what frame j
    changes in the maxima, a matrix product; and the same with words and frames swapped.
    """
    similarity, word_logits, frame_logits, *_ = game
    total, squares = torch.zeros_like(similarity), torch.zeros_like(similarity)
    for first in range(0, draws, block):
        count = min(block, draws - first)
        kept_words = torch.rand(count, similarity.shape[1], generator=generator) < 0.5
        kept_frames = torch.rand(count, similarity.shape[2], generator=generator) < 0.5
        through_words = weight_changes(word_logits, kept_words) @ maximum_changes(similarity, kept_frames)
        through_frames = weight_changes(frame_logits, kept_frames) @ maximum_changes(
            similarity.transpose(1, 2), kept_words
        )
        interactions = (through_words + through_frames.transpose(2, 3)) / 2
        total += interactions.sum(dim=1)
        squares += interactions.square().sum(dim=1)
    return total / draws, squares / draws


def weight_changes(logits: Tensor, kept: Tensor) -> Tensor:
    """[pairs, draws, members, tokens]: softmax weights of the tokens with the member in the set, less those without."""
    # [members, tokens], 1 where the token is the member.
    member = torch.eye(kept.shape[1])
    # [pairs, 1, 1, tokens], less the largest logit, so that no exponential overflows.
    raised = (logits - logits.amax(dim=1, keepdim=True)).exp()[:, None, None, :]
    without = raised * (kept[:, None, :] * (1 - member))
    total = without.sum(dim=-1, keepdim=True)
    own = raised * member
    return (without + own) / (total + own.sum(dim=-1, keepdim=True)) - without / total.clamp(min=1e-30)


def maximum_changes(values: Tensor, kept: Tensor) -> Tensor:
    """[pairs, draws, rows, tokens]: maximum of a row with the token in the set, less that without; of no value, 0."""
    kept_values = values[:, None].masked_fill(~kept[:, None, :], -torch.inf)
    best = kept_values.topk(2, dim=-1)
    # Without a token, the maximum of the others: the second best where the token is the best.
    tokens = torch.arange(values.shape[2])
    others = torch.where(tokens == best.indices[..., :1], best.values[..., 1:], best.values[..., :1])
    with_token = torch.maximum(values[:, None], others)
    return with_token - others.masked_fill(others.isinf(), 0)


def rows(_: Path) -> Iterator[Row]:
    check_exact_labels()
    check_published_sampling()
    for (words, frames), (cells, draws) in SIZES.items():
        yield from rows_of(words, frames, cells=cells, draws=draws)


def rows_of(words: int, frames: int, *, cells: int, draws: int) -> Iterator[Row]:
    game = random_game(PAIRS, words, frames)
    exact = exact_interaction(*game)
    what = f"exact labels, {PAIRS} pairs, {words}×{frames}"

    mean, square = sampled_moments(game, draws, torch.Generator().manual_seed(1))
    deviation = (square - mean.square()).sqrt()
    check_scores("the vectorised sampling", mean - exact, deviation / draws**0.5)
    # The error falls with the root of the number of draws; the mean square over cells is what 1% refers to.
    draws_needed = float((deviation / (RELATIVE_ERROR * exact.std())).square().mean())

    published_game = with_softmax_weights(game)
    generator = torch.Generator().manual_seed(2)
    ours, published, vectorised = in_turns(
        [
            partial(repeat, EXACT_CALLS, partial(exact_interaction, *game)),
            partial(sample_cells, published_game, cells, generator),
            partial(sampled_moments, game, BLOCK_DRAWS, generator),
        ],
        TIMES,
    )
    ours = scaled(ours, 1e3 / EXACT_CALLS)
    published = scaled(published, 1e3 * words * frames / cells)
    yield Row(
        what,
        f"published sampling, {PUBLISHED_DRAWS} draws per cell (scaled from {cells} of {words * frames:,} cells)",
        published,
        ours,
        "ms",
        ratios(published, ours),
        Target("≥", 30_000),
    )
    vectorised = scaled(vectorised, 1e3 * draws_needed / BLOCK_DRAWS)
    yield Row(
        what,
        f"vectorised sampling to a standard error of {RELATIVE_ERROR:.0%} (scaled to {draws_needed:,.0f} draws)",
        vectorised,
        ours,
        "ms",
        ratios(vectorised, ours),
        Target("≥", 1000),
    )


def sample_cells(game: Game, cells: int, generator: torch.Generator) -> None:
    """The published sampling of the first ``cells`` cells of every pair."""
    for cell in range(cells):
        word, frame = divmod(cell, game[0].shape[2])
        sample_published_cell(*game, word=word, frame=frame, generator=generator)


def repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()
