"""Retrieval evaluation above the encoders against the published loop, and against a bare matrix product.

The loop takes 32 texts and 32 videos at a time and computes all three levels of them anew, merges included. Ours
merges each item once and computes the levels that count in the score, in blocks as the evaluation's actors do. All
items have all their tokens: nothing depends on how padding is treated then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import straightforward
from benchmarks.heads import DIM, Shape, largest_difference, make_model, random_features
from benchmarks.peak_memory import in_own_process, peak_extra_mb
from benchmarks.rows import ResultsDifferError, Row, Spread, Target, in_turns, ratios, scaled
from hbi_models.axes import TokenFeatures, TokenLevel
from hbi_models.retrieval import RetrievalModel, counted_levels
from hbi_models.similarity import level_similarity
from pipelines.recipe.evaluation import EvaluationConfig

BLOCK = 32
BLOCKS_TIMED = 6
TOLERANCE = 1e-4
TILE = EvaluationConfig().tile


@dataclass(frozen=True)
class Task:
    """An evaluation, of which a part of the texts is timed and scaled."""

    shape: Shape
    texts_timed: int
    times: int

    @property
    def scale(self) -> float:
        return self.shape.texts / self.texts_timed

    @property
    def blocks(self) -> int:
        """Of the whole published loop."""
        return -(-self.shape.texts // BLOCK) * -(-self.shape.videos // BLOCK)


TASKS = (Task(Shape(1000, 1000, 24, 12), 250, 5), Task(Shape(4917, 4917, 24, 12), 154, 3))
BARE_ONLY = Task(Shape(256, 256, 64, 64), 256, 3)
"""ActivityNet's tokens."""
COALITIONS = Target("≤", 3)
"""Two sorts of all cosines, where the plain similarity needs two maxima."""


class Evaluation:
    """Features of a task's items, and what is done with them."""

    def __init__(self, task: Task, folder: Path, *, dim: int = DIM) -> None:
        self.task, self.model = task, make_model(folder, task.shape, dim=dim).eval()
        self.words = random_features(task.shape.texts, task.shape.words, dim=dim, seed=1)
        self.frames = random_features(task.shape.videos, task.shape.frames, dim=dim, seed=2)

    @torch.inference_mode()
    def merge(self) -> None:
        """The timed share of the items, each once."""
        # As large a share of the videos as of the texts: the sum is multiplied by ``scale`` for the whole evaluation.
        texts, videos = self.task.texts_timed, round(self.task.shape.videos / self.task.scale)
        merge_blocks(self.model, part(self.words, 0, texts), part(self.frames, 0, videos))

    @torch.inference_mode()
    def score(self, texts: Sequence[TokenLevel], videos: Sequence[TokenLevel], scores: Tensor) -> None:
        """Fills ``scores`` block by block."""
        for row in range(0, scores.shape[0], TILE):
            text_block = tuple(cut(level, row, TILE) for level in texts)
            for column in range(0, scores.shape[1], TILE):
                video_block = tuple(cut(level, column, TILE) for level in videos)
                tile = self.model.similarity(text_block, video_block)
                scores[row : row + TILE, column : column + TILE] = tile

    @torch.inference_mode()
    def published_block(self, number: int) -> tuple[int, int, Tensor]:
        """First text and video of a block, and its scores; blocks come along the diagonal."""
        # Ours has scores of the timed texts alone, so rows start again before columns do.
        row = number * BLOCK % (self.task.texts_timed - BLOCK + 1)
        column = number * BLOCK % (self.task.shape.videos - BLOCK + 1)
        rates = self.model.config.level_rates
        texts = straightforward.hierarchy(
            part(self.words, row, BLOCK), self.model.text_merges, self.model.text_importance
        )
        videos = straightforward.hierarchy(
            part(self.frames, column, BLOCK), self.model.video_merges, self.model.video_importance
        )
        levels = [straightforward.similarity(text, video) for text, video in zip(texts, videos, strict=True)]
        return row, column, sum((rate * level for rate, level in zip(rates, levels, strict=True)), torch.zeros(()))


def merge_blocks(
    model: RetrievalModel, words: TokenFeatures, frames: TokenFeatures
) -> tuple[tuple[TokenLevel, ...], tuple[TokenLevel, ...]]:
    """The levels of all items that count in the score, in batches as the evaluation makes them."""
    size, levels = EvaluationConfig().batch_size, counted_levels(model.config.level_rates)
    texts = [model.text_hierarchy(part(words, first, size), levels=levels) for first in range(0, len(words.mask), size)]
    videos = [
        model.video_hierarchy(part(frames, first, size), levels=levels) for first in range(0, len(frames.mask), size)
    ]
    return joined(texts), joined(videos)


def joined(batches: Sequence[tuple[TokenLevel, ...]]) -> tuple[TokenLevel, ...]:
    return tuple(
        TokenLevel(
            torch.cat([level.features for level in levels]),
            torch.cat([level.mask for level in levels]),
            torch.cat([level.logits for level in levels]),
        )
        for levels in zip(*batches, strict=True)
    )


def part(tokens: TokenFeatures, first: int, count: int) -> TokenFeatures:
    return TokenFeatures(tokens.features[first : first + count], tokens.mask[first : first + count])


def cut(level: TokenLevel, first: int, count: int) -> TokenLevel:
    return level.map(lambda tensor: tensor[first : first + count])


def bare_product(words: Tensor, frames: Tensor) -> None:
    """All cosines of unit tokens by nothing but matrix products, into one piece of memory that is used again."""
    # [dim, videos · frames]
    matrix = frames.flatten(0, 1).t()
    rows = words.flatten(0, 1).split(BLOCK * words.shape[1])
    products = torch.empty(len(rows[0]), matrix.shape[1])
    for row in rows:
        torch.mm(row, matrix, out=products[: len(row)])


def random_level(items: int, tokens: int, *, dim: int = DIM, seed: int) -> TokenLevel:
    features = random_features(items, tokens, dim=dim, seed=seed)
    return TokenLevel(features.features, features.mask, features.features[:, :, 0])


def check(evaluation: Evaluation, scores: Tensor) -> None:
    """The published blocks against the same parts of our matrix.

    Raises:
        ResultsDifferError: they differ by more than rounding.
    """
    for number in range(BLOCKS_TIMED):
        row, column, block = evaluation.published_block(number)
        difference = largest_difference(scores[row : row + BLOCK, column : column + BLOCK], block)
        if not difference <= TOLERANCE:
            raise ResultsDifferError(f"scores of the block at ({row}, {column}) differ by {difference:.1e}")


def scoring_alone(texts: int, videos: int, shape: Shape, folder: Path) -> float:
    """Peak memory of scoring so many texts and videos, beyond their features and the scores; MB."""
    evaluation = Evaluation(Task(Shape(TILE, TILE, shape.words, shape.frames), TILE, 1), folder)
    # The three levels of a model's items, though only those that count are looked at.
    levels = (random_level(texts, shape.words, seed=1),) * 3, (random_level(videos, shape.frames, seed=2),) * 3
    # Loads libraries, whose memory is not the scores'.
    evaluation.score(*(tuple(cut(level, 0, 2) for level in side) for side in levels), torch.zeros(2, 2))
    scores = torch.zeros(texts, videos)
    return peak_extra_mb(lambda: evaluation.score(*levels, scores))


def rows(folder: Path) -> Iterator[Row]:
    for task in TASKS:
        yield from rows_of(task, folder)
    shape = BARE_ONLY.shape
    texts, videos = random_level(shape.texts, shape.words, seed=1), random_level(shape.videos, shape.frames, seed=2)
    ours, bare = in_turns(
        [
            torch.inference_mode()(partial(level_similarity, texts, videos)),
            partial(bare_product, texts.features, videos.features),
        ],
        BARE_ONLY.times,
    )
    yield bare_row(f"all pairs of {shape}", bare, ours)
    yield coalition_row(BARE_ONLY.times)
    large, small = (
        Spread((in_own_process(scoring_alone, task.texts_timed, task.shape.videos, task.shape, folder),))
        for task in reversed(TASKS)
    )
    yield Row(
        f"evaluation, memory beyond features and scores, {TASKS[1].shape}",
        f"the same, {TASKS[0].shape}",
        small,
        large,
        "MB",
        ratios(large, small),
        Target("≤", 1.5),
    )


def rows_of(task: Task, folder: Path) -> Iterator[Row]:
    evaluation = Evaluation(task, folder)
    with torch.inference_mode():
        texts, videos = merge_blocks(evaluation.model, part(evaluation.words, 0, task.texts_timed), evaluation.frames)
    scores = torch.zeros(task.texts_timed, task.shape.videos)
    score = partial(evaluation.score, texts, videos, scores)
    score()
    check(evaluation, scores)
    # Not of unit length in truth, which makes no difference to the time of a product.
    unit_words, unit_frames = texts[0].features, videos[0].features

    def loop() -> None:
        for number in range(BLOCKS_TIMED):
            evaluation.published_block(number)

    merging, scoring, published, bare = in_turns(
        [evaluation.merge, score, loop, partial(bare_product, unit_words, unit_frames)], task.times
    )
    whole = scaled(published, task.blocks / BLOCKS_TIMED)
    ours = Spread(
        tuple(task.scale * (merge + score) for merge, score in zip(merging.values, scoring.values, strict=True))
    )
    what = f"evaluation above the encoders, {task.shape} (scaled from 1/{task.scale:.0f} of the texts)"
    yield Row(
        what,
        f"published loop, 32×32 blocks (scaled from {BLOCKS_TIMED} of {task.blocks:,})",
        whole,
        ours,
        "s",
        ratios(whole, ours),
        Target("≥", 15),
    )
    yield bare_row(f"all pairs of {task.shape}", scaled(bare, task.scale), scaled(scoring, task.scale))


def coalition_row(times: int) -> Row:
    """The expected similarity over coalitions beside the plain one."""
    texts, videos = random_level(256, 24, seed=1), random_level(256, 12, seed=2)
    plain, ours = in_turns(
        [
            torch.inference_mode()(partial(level_similarity, texts, videos)),
            torch.inference_mode()(partial(level_similarity, texts, videos, coalitions=0.5)),
        ],
        times,
    )
    return Row(
        "all pairs of 256, 24×12, coalitions ½",
        "the plain similarity",
        plain,
        ours,
        "s",
        ratios(ours, plain),
        COALITIONS,
    )


def bare_row(what: str, bare: Spread, ours: Spread) -> Row:
    return Row(what, "bare matrix product", bare, ours, "s", ratios(ours, bare), Target("≤", 1.5))
