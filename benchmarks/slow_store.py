"""Training input from a store that answers after 25 ms, as an object store does, beside the same from a disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from benchmarks.rows import ResultsDifferError, Row, Target, in_turns, ratios
from benchmarks.training_input import CORES, FRAMES_PER_VIDEO, SIZE_PX, per_second, write_shards
from pipelines.train.batches import BatchAddress, load_ahead
from pipelines.video.frame_store import FrameBatch, FrameStore
from pipelines.workspace.storage import Storage

LATENCY_S = 0.025
VIDEOS, BATCH, TIMES = 256, 32, 3


class Store(BaseHTTPRequestHandler):
    """As much of S3 as reading an object takes: its size, and parts of it."""

    protocol_version = "HTTP/1.1"
    folder: Path
    latency_s: float

    def log_message(self, *_: object) -> None:
        """Nothing is written between the rows."""

    def do_HEAD(self) -> None:
        self._answer(200, {"Content-Length": self._file.stat().st_size})

    def do_GET(self) -> None:
        size = self._file.stat().st_size
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        count = min(last, size - 1) - first + 1
        self._answer(206, {"Content-Length": count, "Content-Range": f"bytes {first}-{first + count - 1}/{size}"})
        with self._file.open("rb") as file:
            self.connection.sendfile(file, first, count)

    @property
    def _file(self) -> Path:
        return self.folder / Path(urlsplit(self.path).path).name

    def _answer(self, status: int, headers: Mapping[str, object]) -> None:
        # Before the answer, also to HEAD: a store's latency is that of a request, whatever it asks for.
        time.sleep(self.latency_s)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        # sendfile writes to the socket itself, past any buffer.
        self.wfile.flush()


def serve(folder: Path, latency_s: float, sender: Connection) -> None:
    """Answers for the files in ``folder``, on loopback, until the process is ended; sends its address first."""
    kind = type("StoreOfFolder", (Store,), {"folder": folder, "latency_s": latency_s})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        sender.send(f"http://127.0.0.1:{server.server_port}")
        server.serve_forever()


@contextmanager
def store(folder: Path, latency_s: float) -> Iterator[Storage]:
    """The files in ``folder`` as objects of a store that takes so long for each answer."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # A process of its own, so that the store's answers take no time of the reader's interpreter.
    process = context.Process(target=serve, args=(folder, latency_s, sender), daemon=True)
    process.start()
    try:
        address = f"{receiver.recv()}/"
        # The pipeline's own storage of S3, which asks the environment where that is.
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        yield Storage("s3://bench")
    finally:
        process.terminate()
        process.join()


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
    with store(folder, LATENCY_S) as slow:
        expected, found = read_all(pool.storage, index), read_all(slow, index)
        if not all(torch.equal(one.frames, other.frames) for one, other in zip(expected, found, strict=True)):
            raise ResultsDifferError("other frames come from the slow store than from the disk")
        local, ours = in_turns([partial(read_all, pool.storage, index), partial(read_all, slow, index)], TIMES)
    yield Row(
        f"training input from an object store on this machine that answers after {1e3 * LATENCY_S:.0f} ms",
        "the same from a local disk",
        per_second(VIDEOS, local),
        per_second(VIDEOS, ours),
        "samples/s",
        ratios(local, ours),
        Target("≥", 0.8),
    )
