"""Which (video, text) pairs make the batch of a step, and in which order; texts are captions or questions.

An epoch shows every text once. It makes as many passes over the videos as the video with the most texts has texts. A
pass takes one text of each video that has one left. A batch never holds two texts of one video, because the contrastive
loss would count them as non-matching. The order depends only on (seed, epoch), and not on the number of workers,
restarts or the speed of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pair:
    """One training item: text ``text`` of video ``video``, in pass ``pass_index``."""

    video: int
    text: int
    pass_index: int


def epoch_batches(
    texts_per_video: Sequence[int], *, batch_size: int, seed: int, epoch: int, max_texts: int | None = None
) -> list[list[Pair]]:
    """The global batches of an epoch; pairs that do not fill another batch at the end are left out.

    Where videos differ in their number of texts, epochs may differ by a few batches.

    Args:
        texts_per_video: number of captions, or of questions, of each training video.
        batch_size: pairs per step over all workers.
        seed: seed of the run.
        epoch: number of the epoch, from 0; each has its own order.
        max_texts: texts of a video used per epoch, drawn anew each epoch; None = all.

    Raises:
        ValueError: there are fewer videos with texts than ``batch_size``.
    """
    # NumPy mixes the two: with seed + epoch, epoch 1 of seed 0 would have the order of epoch 0 of seed 1.
    generator = np.random.default_rng([seed, epoch])
    counts = np.asarray(texts_per_video, dtype=np.int64)
    usable = int((counts > 0).sum())
    if usable < batch_size:
        raise ValueError(
            f"a batch of {batch_size} pairs needs {batch_size} different videos with captions or questions, and the "
            f"training split has {usable}; lower the batch size or add videos"
        )
    texts = [generator.permutation(count)[:max_texts] for count in counts]
    sequence = [
        Pair(int(video), int(texts[video][pass_index]), pass_index)
        for pass_index in range(max(len(chosen) for chosen in texts))
        for video in _shuffled(generator, [video for video, chosen in enumerate(texts) if len(chosen) > pass_index])
    ]
    return _cut(sequence, batch_size)


def _shuffled(generator: np.random.Generator, videos: list[int]) -> NDArray[np.int64]:
    return generator.permutation(np.asarray(videos, dtype=np.int64))


def _cut(sequence: list[Pair], size: int) -> list[list[Pair]]:
    """Batches of ``size`` from ``sequence``; a pair whose video is in the batch already waits for the next."""
    batches: list[list[Pair]] = []
    batch: dict[int, Pair] = {}
    waiting: list[Pair] = []
    for pair in sequence:
        # Within a pass each video comes once, so this happens only in batches that reach from one pass into the next.
        if pair.video in batch:
            waiting.append(pair)
        else:
            batch[pair.video] = pair
        # A loop, because those that wait may fill the next batch at once.
        while len(batch) == size:
            batches.append(list(batch.values()))
            batch, waiting = _take_distinct(waiting, size)
    return batches


def _take_distinct(waiting: list[Pair], size: int) -> tuple[dict[int, Pair], list[Pair]]:
    """The first pairs of different videos, at most ``size``, by video; and the others."""
    batch: dict[int, Pair] = {}
    still: list[Pair] = []
    for pair in waiting:
        if pair.video in batch or len(batch) == size:
            still.append(pair)
        else:
            batch[pair.video] = pair
    return batch, still


def rank_slice(batch: Sequence[Pair], *, rank: int, world_size: int) -> Sequence[Pair]:
    """The part of a global batch that ``rank`` works on."""
    # Nothing is left over: the recipe refuses a batch that the workers cannot share evenly.
    size = len(batch) // world_size
    return batch[rank * size : (rank + 1) * size]
