"""Samples per second on the way from Parquet to a batch of uint8 frames, without and with augmentation.

The yardstick without augmentation is bare decoding: the same JPEG bytes, already in memory, decoded one by one in
as many threads by libjpeg-turbo itself (simplejpeg; twice as fast as PIL here, and a third faster than
torchvision), and dropped. The one with augmentation is what timm does, the same operations on PIL's images, from
the same bytes to the same batch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

from benchmarks.rows import ResultsDifferError, Row, Target, in_turns, per_second, ratios
from pipelines.recipe.training import AugmentationConfig
from pipelines.video.augmentation import (
    OPERATIONS,
    Frames,
    Operation,
    apply_operation,
    augmentation_rng,
    draw_operations,
    rand_augment,
)
from pipelines.video.frame_store import FrameBatch, FrameStore, as_images, stack_frames
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

VIDEOS, DISTINCT, AUGMENTED, FRAMES_PER_VIDEO, BATCH, SHARD = 256, 32, 64, 12, 32, 64
HEIGHT, WIDTH, SIZE_PX = 224, 298, 224
"""What the stage frames stores of a video of 4 to 3, and what the model takes of it."""
TIMES = 5
CORES = os.cpu_count() or 1
CONFIG = AugmentationConfig()
# timm's functions of these take an image alone.
WITHOUT_ARGUMENT = ("AutoContrast", "Equalize", "Invert")
PIL_SETTINGS = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}


def rows(folder: Path) -> Iterator[Row]:
    torch.set_num_threads(1)
    pool = write_shards(folder, VIDEOS)
    store = FrameStore(pool.storage, pool.index(["video_id"]), threads=CORES)
    order = np.random.default_rng(1).permutation(len(store)).tolist()
    encoded = [store.encoded(video) for video in order]
    with ThreadPoolExecutor(CORES) as threads:
        require_equal_pixels(encoded[0], store.decoded(order[0]))
        bare, ours = in_turns([partial(decode_all, threads, encoded), partial(read_all, store, order)], TIMES)
        yield Row(
            f"training input: Parquet to uint8, {FRAMES_PER_VIDEO} frames of {WIDTH}×{HEIGHT}",
            f"libjpeg-turbo, {CORES} threads",
            per_second(VIDEOS, bare),
            per_second(VIDEOS, ours),
            "samples/s",
            ratios(bare, ours),
            Target("≥", 0.85),
        )
        require_equal_operations(np.stack([decode(image) for image in encoded[0]]))
        pil, ours = in_turns(
            [
                partial(augment_with_pil, threads, encoded[:AUGMENTED]),
                partial(read_all, store, order[:AUGMENTED], augment=True),
            ],
            TIMES,
        )
        yield Row(
            "the same, with RandAugment",
            f"PIL as timm uses it, {CORES} threads",
            per_second(AUGMENTED, pil),
            per_second(AUGMENTED, ours),
            "samples/s",
            ratios(pil, ours),
            None,
        )


def write_shards(folder: Path, videos: int) -> ShardPool:
    """Smooth random images, whose JPEGs have the size of those of real video; every few videos the same."""
    generator = np.random.default_rng(0)
    distinct = [[draw_image(generator) for _ in range(FRAMES_PER_VIDEO)] for _ in range(min(videos, DISTINCT))]
    pool = ShardPool(Storage(str(folder)), FRAMES)
    for first in range(0, videos, SHARD):
        shard = []
        for video in range(first, min(first + SHARD, videos)):
            name, images = f"{video:05d}", distinct[video % len(distinct)]
            shard.append({"video_id": name, "key": name, "frames": images, "frame_index": [], "time_s": []})
        pool.commit(shard)
    return pool


def draw_image(generator: np.random.Generator) -> bytes:
    coarse = generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def decode(image: bytes) -> Frames:
    pixels: Frames = simplejpeg.decode_jpeg(image)
    return pixels


def decode_all(threads: ThreadPoolExecutor, encoded: Sequence[Sequence[bytes]]) -> None:
    def work(images: Sequence[bytes]) -> None:
        for image in images:
            decode(image)

    list(threads.map(work, encoded))


def read_all(store: FrameStore, order: Sequence[int], *, augment: bool = False) -> None:
    """What a training's loader does: any videos, in a random order, batch by batch."""
    for start in range(0, len(order), BATCH):
        videos = order[start : start + BATCH]

        def change(row: int, frames: Frames, start: int = start) -> Frames:
            return rand_augment(frames, CONFIG, generator_of(start + row))

        # change sees the row within the batch, and start makes it the place in the order, as augment_with_pil counts.
        store.batch(videos, image_size_px=SIZE_PX, max_frames=FRAMES_PER_VIDEO, change=change if augment else None)


def augment_with_pil(threads: ThreadPoolExecutor, encoded: Sequence[Sequence[bytes]]) -> list[FrameBatch]:
    """The same batches with PIL's operations on each frame."""

    def work(position: int) -> list[torch.Tensor]:
        drawn = draw_operations(CONFIG, generator_of(position))
        images = []
        for data in encoded[position]:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            for operation in drawn:
                image = apply_with_pil(image, operation)
            images.append(np.asarray(image))
        return as_images(np.stack(images))

    return [
        stack_frames(
            list(threads.map(work, range(start, min(start + BATCH, len(encoded))))),
            image_size_px=SIZE_PX,
            max_frames=FRAMES_PER_VIDEO,
        )
        for start in range(0, len(encoded), BATCH)
    ]


def apply_with_pil(image: Image.Image, operation: Operation) -> Image.Image:
    arguments = [] if operation.name in WITHOUT_ARGUMENT else [operation.argument]
    changed: Image.Image = NAME_TO_OP[operation.name](image, *arguments, **PIL_SETTINGS)
    return changed


def generator_of(position: int) -> np.random.Generator:
    return augmentation_rng(0, 0, 0, str(position))


def require_equal_pixels(encoded: Sequence[bytes], decoded: Sequence[torch.Tensor]) -> None:
    """Compares what our loader decodes with bare decoding, and both with PIL.

    Raises:
        ResultsDifferError: a pixel differs.
    """
    for data, image in zip(encoded, decoded, strict=True):
        pixels = image.movedim(0, -1).numpy()
        pil = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if not (np.array_equal(pixels, decode(data)) and np.array_equal(pixels, pil)):
            raise ResultsDifferError("a stored image has other pixels than libjpeg-turbo or PIL give it")


def require_equal_operations(frames: Frames) -> None:
    """Compares every operation with PIL's.

    Raises:
        ResultsDifferError: a pixel differs by more than a level, the rounding of a sum.
    """
    for name, kind in OPERATIONS.items():
        argument = kind.to_argument(CONFIG.magnitude / 10, 1.0)
        operation = Operation(name, argument)
        expected = np.stack([np.asarray(apply_with_pil(Image.fromarray(frame), operation)) for frame in frames])
        difference = int(np.abs(apply_operation(frames, operation).astype(int) - expected).max())
        if difference > 1:
            raise ResultsDifferError(f"{name} differs from PIL's by {difference} levels")
