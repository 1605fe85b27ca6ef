"""Two ways of reading training frames, side by side: random access by row, and Ray Data's iterator.

    python -m benchmarks.training_input [--videos 384] [--threads 2]

Both read the same Parquet shards (12 JPEG frames of 224×224 per video) and make the same uint8 batches. The
yardstick is bare decoding: the same JPEG bytes, already in memory, decoded by the same number of
threads. Results are compared for equality before time is.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipelines.configs import ResourcesConfig
from pipelines.data.frame_store import FrameStore, decode_images, stack_frames
from pipelines.ray_session import ray_session
from pipelines.records import FRAMES
from pipelines.shards import ShardPool
from pipelines.storage import Storage
from pipelines.tables import table
from pipelines.train.batches import load_ahead

FRAMES_PER_VIDEO, SIZE_PX, BATCH, SHARD = 12, 224, 32, 64


def make_shards(folder: Path, videos: int) -> ShardPool:
    """Smooth random images, whose JPEGs have the size of those of real video (about 14 KB)."""
    generator = np.random.default_rng(0)
    pool = ShardPool(Storage(str(folder)), FRAMES)
    for first in range(0, videos, SHARD):
        rows = []
        for video in range(first, min(first + SHARD, videos)):
            images = []
            for _ in range(FRAMES_PER_VIDEO):
                coarse = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
                sink = io.BytesIO()
                Image.fromarray(coarse).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC).save(
                    sink, "JPEG", quality=90
                )
                images.append(sink.getvalue())
            rows.append(
                {"video_id": f"v{video:05d}", "key": f"k{video:05d}", "frames": images, "frame_index": [], "time_s": []}
            )
        pool.commit(rows)
    return pool


def bare_decoding(encoded: list[list[bytes]], threads: int) -> int:
    with ThreadPoolExecutor(threads) as executor:
        return sum(len(images) for images in executor.map(decode_images, encoded)) // FRAMES_PER_VIDEO


class StoreBatches:
    """What training does: any videos, in a random order, batch by batch."""

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self._order = np.random.default_rng(1).permutation(len(store)).tolist()

    def addresses(self) -> list[tuple[int, int]]:
        return [(0, step) for step in range(len(self._order) // BATCH)]

    def __getitem__(self, address: tuple[int, int]) -> tuple[list[str], Tensor]:
        videos = self._order[address[1] * BATCH : (address[1] + 1) * BATCH]
        batch = self._store.batch(videos, image_size_px=SIZE_PX, max_frames=FRAMES_PER_VIDEO)
        return [self._store.video_ids[video] for video in videos], batch.frames


def ray_batches(folder: Path, threads: int) -> Iterator[tuple[list[str], Tensor]]:
    import ray.data
    from ray.data.collate_fn import ArrowBatchCollateFn

    class Collate(ArrowBatchCollateFn):  # type: ignore[misc]
        def __call__(self, batch: pa.Table) -> dict[str, object]:
            with ThreadPoolExecutor(threads) as executor:
                images = list(executor.map(decode_images, batch.column("frames").to_pylist()))
            frames = stack_frames(images, image_size_px=SIZE_PX, max_frames=FRAMES_PER_VIDEO).frames
            return {"ids": batch.column("video_id").to_pylist(), "frames": frames}

    rows = ray.data.read_parquet(str(folder)).select_columns(["video_id", "frames"])
    batches = rows.iter_torch_batches(
        batch_size=BATCH,
        drop_last=True,
        collate_fn=Collate(),
        local_shuffle_buffer_size=4 * BATCH,
        local_shuffle_seed=0,
        prefetch_batches=3,
    )
    for batch in batches:
        yield batch["ids"], batch["frames"]


def timed(work: Callable[[], int]) -> float:
    """Videos per second."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def check_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in first.keys() & second.keys():
        assert torch.equal(first[name], second[name]), f"{name} differs between the two ways of reading"


def collect(batches: Iterator[tuple[list[str], Tensor]]) -> dict[str, Tensor]:
    return {name: frames for ids, batch in batches for name, frames in zip(ids, batch, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ray_session(ResourcesConfig(local_cpus=2)):
        folder = Path(scratch)
        pool = make_shards(folder, options.videos)
        index = pool.index(["video_id"])
        store = FrameStore(pool.storage, index, threads=options.threads)
        encoded = [store.encoded(video) for video in range(len(store))]
        source = StoreBatches(store)

        def random_access() -> Iterator[tuple[list[str], Tensor]]:
            return load_ahead(source, source.addresses(), processes=0, pin_memory=False)

        check_equal(collect(random_access()), collect(ray_batches(folder, options.threads)))
        contenders: dict[str, Callable[[], int]] = {
            "bare JPEG decoding": lambda: bare_decoding(encoded, options.threads),
            "random access by row": lambda: sum(len(ids) for ids, _ in random_access()),
            "Ray Data iterator": lambda: sum(len(ids) for ids, _ in ray_batches(folder, options.threads)),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.repeats):
            for name, work in contenders.items():
                rates[name].append(timed(work))
        bare = rates["bare JPEG decoding"]
        rows = []
        for name, values in rates.items():
            ratios = [value / reference for value, reference in zip(values, bare, strict=True)]
            rows.append(
                [
                    name,
                    f"{statistics.median(values):.0f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f}–{max(ratios):.2f}",
                ]
            )
        print(table(["reading", "videos/s", "× bare", "min–max"], rows))


if __name__ == "__main__":
    main()
