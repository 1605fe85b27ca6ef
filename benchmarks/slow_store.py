"""Training input from a store that answers after 25 ms, as an object store does, beside the same from a disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import torch
from fsspec.implementations.local import LocalFileSystem

from benchmarks.rows import ResultsDifferError, Row, Target, in_turns, ratios
from benchmarks.training_input import CORES, FRAMES_PER_VIDEO, SIZE_PX, per_second, write_shards
from pipelines.train.batches import BatchAddress, load_ahead
from pipelines.video.frame_store import FrameBatch, FrameStore
from pipelines.workspace.storage import Storage

LATENCY_S = 0.025
VIDEOS, BATCH, TIMES = 256, 32, 3


class SlowFile:
    """A file each of whose reads is a request.

    Every thread has a position of its own: Arrow finds out the size of a Python file by going to its end and back,
    while other threads read. Arrow's object stores, which the pipeline uses, read without a position.
    """

    closed = False

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._place = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: os.fstat(self._file).st_size}[whence]
        self._place.bytes = start + offset
        return self.tell()

    def tell(self) -> int:
        return int(getattr(self._place, "bytes", 0))

    def read(self, length: int) -> bytes:
        time.sleep(LATENCY_S)
        found = os.pread(self._file, length, self.tell())
        self.seek(len(found), os.SEEK_CUR)
        return found

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._file)


class SlowFileSystem(LocalFileSystem):
    """The local disk, with the latency of an object store."""

    cachable = False

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        time.sleep(LATENCY_S)
        return SlowFile(path) if mode == "rb" else super()._open(path, mode, block_size)


class SlowStorage(Storage):
    """A folder behind it."""

    @property
    def filesystem(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(pafs.FSSpecHandler(SlowFileSystem()))


class Source:
    """Batches of random videos."""

    def __init__(self, store: FrameStore) -> None:
        self.store = store
        self.order = np.random.default_rng(1).permutation(len(store)).tolist()

    def videos(self, address: BatchAddress) -> list[int]:
        return self.order[address[1] * BATCH : (address[1] + 1) * BATCH]

    def read_ahead(self, address: BatchAddress) -> None:
        self.store.read_ahead(self.videos(address))

    def __getitem__(self, address: BatchAddress) -> FrameBatch:
        return self.store.batch(self.videos(address), image_size_px=SIZE_PX, max_frames=FRAMES_PER_VIDEO)


def read_all(storage: Storage, index: Any) -> list[FrameBatch]:
    """All videos once, from files that are not open yet."""
    source = Source(FrameStore(storage, index, threads=CORES))
    addresses = [(0, step) for step in range(VIDEOS // BATCH)]
    return list(load_ahead(source, addresses, processes=0, pin_memory=False))


def rows(folder: Path) -> Iterator[Row]:
    torch.set_num_threads(1)
    pool = write_shards(folder, VIDEOS)
    index = pool.index(["video_id"])
    slow = SlowStorage(str(folder))
    for one, other in zip(read_all(pool.storage, index), read_all(slow, index), strict=True):
        if not torch.equal(one.frames, other.frames):
            raise ResultsDifferError("other frames come from the slow store than from the disk")
    local, ours = in_turns([partial(read_all, pool.storage, index), partial(read_all, slow, index)], TIMES)
    yield Row(
        f"training input from a store that answers after {1e3 * LATENCY_S:.0f} ms",
        "the same from a local disk",
        per_second(VIDEOS, local),
        per_second(VIDEOS, ours),
        "samples/s",
        ratios(local, ours),
        Target("≥", 0.8),
    )
