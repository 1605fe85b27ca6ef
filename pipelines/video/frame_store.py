"""Random access to stored frames: any video's images from its shard, decoded to uint8.

Every row of a shard is a row group of its own, so reading a video touches its bytes alone, on a
disk or in an object store.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from einops import rearrange
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from hbi_models.clip.preprocessing import centre_crop
from pipelines.video.batch_memory import BatchMemory
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shard_rows import ReadAhead, ShardRows
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

MAX_STORED_PIXELS = 1 << 25
"""Larger images were not written by the frames stage, and would take 100 MB each as pixels."""

_JPEG_START = b"\xff\xd8"


Frames = UInt8[np.ndarray, "frames height width 3"]
Pixels = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames of several videos, cropped and padded; padded frames are black and masked out.

    A pixel's three bytes lie together in memory, as decoders write them.
    """

    frames: UInt8[Tensor, "videos frames 3 height width"]
    mask: Bool[Tensor, "videos frames"]

    def put(self, row: int, images: Iterable[UInt8[Tensor, "3 height width"]]) -> None:
        """Fills a row with the centre squares of a video's ``images``, each copied before the next is taken.

        Raises:
            ValueError: an image is smaller than the squares.
        """
        # Written by NumPy, which uses only the calling thread, and does not care about PyTorch's inference mode.
        frames, mask = self.frames.numpy()[row], self.mask.numpy()[row]
        count = 0
        for image in images:
            frames[count] = centre_crop(image, self.frames.shape[-1]).numpy()
            count += 1
        # The memory may hold an earlier batch.
        frames[count:] = 0
        mask[:count] = True


class FrameStore:
    """Reads the frames that the frames stage stored.

    Args:
        pool: folder of the shards.
        index: table with ``video_id``, ``key``, ``shard`` and ``row`` of the videos that have frames;
            videos are addressed by their position in it.
        threads: decoding threads.
    """

    def __init__(self, pool: Storage, index: pa.Table, *, threads: int = 4) -> None:
        self._stored = ShardRows(ShardPool(pool, FRAMES), index, stage="frames")
        self.video_ids: list[str] = index.column("video_id").to_pylist()
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._ahead: ReadAhead[list[bytes]] = ReadAhead()
        self._memory = BatchMemory()

    def __getstate__(self) -> dict[str, Any]:
        # Threads stay behind when the store travels to another process.
        return {**self.__dict__, "_executor": None}

    def __len__(self) -> int:
        return len(self.video_ids)

    def encoded(self, video: int) -> list[bytes]:
        """The compressed images of a video, in temporal order.

        Raises:
            LostRowsError: its shard is missing or damaged; a damaged one is set aside.
            StorageError: the storage cannot be read.
        """
        with self._stored.explaining():
            return self._read(video)

    def _read(self, video: int) -> list[bytes]:
        (row,) = self._stored.read([video], ["frames"]).to_pylist()
        images: list[bytes] = row["frames"]
        return images

    def read_ahead(self, videos: Sequence[int]) -> None:
        """Begins to read ``videos``, which one of the next batches holds."""
        self._ahead.begin(videos, self._read)

    def decoded(self, video: int) -> list[UInt8[Tensor, "3 height width"]]:
        """The images of a video as uint8, in temporal order; raises as :meth:`encoded`."""
        encoded = self.encoded(video)
        with self._decoding(video):
            return decode_images(encoded)

    @contextmanager
    def _decoding(self, video: int) -> Iterator[None]:
        """Turns the ``ValueError`` of a stored image that cannot be used into a ``LostRowsError``."""
        try:
            yield
        except ValueError as error:
            raise self._stored.foreign(video, f"{self.video_ids[video]}: {error}") from error

    def batch(
        self,
        videos: Sequence[int],
        *,
        image_size_px: int,
        max_frames: int,
        change: Callable[[int, Frames], Frames] | None = None,
    ) -> FrameBatch:
        """Frames of ``videos``, centre-cropped to squares and padded to ``max_frames``; raises as :meth:`encoded`.

        Args:
            videos: which videos, in the order of the batch.
            image_size_px: side of the squares.
            max_frames: later frames of a video are left out.
            change: changes the whole frames before the crop. It is also given the video's place in the batch, and is
                called from several threads.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        size = image_size_px
        batch = _batch_in(self._memory.take((len(videos), max_frames, size, size, 3)))

        def put(row: int, encoded: Sequence[bytes]) -> None:
            if change is None:
                batch.put(row, self._one_by_one(videos[row], encoded))
                return
            with self._decoding(videos[row]):
                images = decode_images(encoded)
            batch.put(row, as_images(change(row, as_channels_last(images))))

        # A video is decoded while others are read. The loop raises what a thread has raised.
        for _ in self._executor.map(put, range(len(videos)), self._read_of(videos, max_frames)):
            pass
        return batch

    def jpegs(self, videos: Sequence[int], *, max_frames: int) -> list[list[bytes]]:
        """The compressed images of ``videos``, at most ``max_frames`` of each; raises as :meth:`encoded`, and where an
        image is no JPEG."""
        found = list(self._read_of(videos, max_frames))
        for video, images in zip(videos, found, strict=True):
            with self._decoding(video):
                for image in images:
                    _check_jpeg(image)
        return found

    def _read_of(self, videos: Sequence[int], max_frames: int) -> Iterator[list[bytes]]:
        """The images of one video after the other, while the threads read those that follow."""
        reads = self._ahead.take(videos, self._read)
        for video in videos:
            with self._stored.explaining():
                images = reads[video].result()[:max_frames]
            yield images

    def _one_by_one(self, video: int, encoded: Sequence[bytes]) -> Iterator[UInt8[Tensor, "3 height width"]]:
        """The images of a video, each of which is overwritten by the next one of its thread."""
        for image in encoded:
            with self._decoding(video):
                decoded = _decode(image, reuse=True)
            yield decoded

    def batches(
        self,
        blocks: Sequence[Sequence[int]],
        *,
        image_size_px: int,
        max_frames: int,
        changes: Sequence[Callable[[int, Frames], Frames] | None] | None = None,
    ) -> Generator[FrameBatch, None, None]:
        """The batch of each block of videos; while the caller works on one, the next is decoded and another one read.

        Other arguments as those of :meth:`batch`, ``changes`` with one for each block.
        """

        def make(number: int) -> FrameBatch:
            for block in blocks[number : number + 2]:
                self.read_ahead(block)
            change = None if changes is None else changes[number]
            return self.batch(blocks[number], image_size_px=image_size_px, max_frames=max_frames, change=change)

        # Beside the store's threads, for which `make` waits.
        with ThreadPoolExecutor(1, thread_name_prefix="batch-maker") as maker:
            ready = maker.submit(make, 0) if blocks else None
            for number in range(len(blocks)):
                assert ready is not None
                batch = ready.result()
                ready = maker.submit(make, number + 1) if number + 1 < len(blocks) else None
                yield batch


def decode_images(encoded: Sequence[bytes]) -> list[UInt8[Tensor, "3 height width"]]:
    """JPEG or PNG images as uint8 tensors.

    Raises:
        ValueError: one is something else, or larger than ``MAX_STORED_PIXELS``.
    """
    return [_decode(image) for image in encoded]


def _decode(encoded: bytes, *, reuse: bool = False) -> UInt8[Tensor, "3 height width"]:
    """``reuse``: the pixels lie where this thread's last ones did, which are still in its core's cache."""
    try:
        pixels = _decode_jpeg(encoded, reuse=reuse) if encoded.startswith(_JPEG_START) else _decode_png(encoded)
    # A SyntaxError is what PIL raises at a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image cannot be used: {error}") from error
    return rearrange(torch.from_numpy(pixels), "height width rgb -> rgb height width")


class _Scratch(threading.local):
    """Where a thread decodes."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def of(self, size: int) -> UInt8[np.ndarray, " size"]:
        if len(self._room) < size:
            self._room = np.empty(size, np.uint8)
        return self._room[:size]


_SCRATCH = _Scratch()


def _decode_jpeg(encoded: bytes, *, reuse: bool) -> Pixels:
    # simplejpeg uses the same library as PIL and gives the same pixels in half the time.
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    _check_size(height, width)
    room = _SCRATCH.of(height * width * 3) if reuse else None
    pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB", buffer=room)
    return pixels


def _check_jpeg(encoded: bytes) -> None:
    """Tests what stands at the beginning of an image that is decoded elsewhere."""
    if not encoded.startswith(_JPEG_START):
        raise ValueError("an image cannot be used: only JPEG images are decoded on a GPU, and it is none")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        _check_size(height, width)
    except ValueError as error:
        raise ValueError(f"an image cannot be used: {error}") from error


def _decode_png(encoded: bytes) -> Pixels:
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        _check_size(image.height, image.width)
        return np.array(image.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if width * height > MAX_STORED_PIXELS:
        raise ValueError(f"it has {width} × {height} pixels, more than {MAX_STORED_PIXELS:,}")


def _batch_in(memory: UInt8[np.ndarray, "videos frames height width 3"]) -> FrameBatch:
    """A batch whose frames lie in ``memory``, all of them masked out, until rows are put into it."""
    mask = torch.zeros(memory.shape[:2], dtype=torch.bool)
    return FrameBatch(rearrange(torch.from_numpy(memory), "v f height width rgb -> v f rgb height width"), mask)


def stack_frames(
    videos: Sequence[Sequence[UInt8[Tensor, "3 height width"]]], *, image_size_px: int, max_frames: int
) -> FrameBatch:
    """One batch of the centre squares of every video's frames.

    Raises:
        ValueError: a stored image is smaller than the model's input.
    """
    batch = _batch_in(np.zeros((len(videos), max_frames, image_size_px, image_size_px, 3), np.uint8))
    for row, images in enumerate(videos):
        batch.put(row, images[:max_frames])
    return batch


def as_channels_last(images: Sequence[UInt8[Tensor, "3 height width"]]) -> Frames:
    """Frames of equal size as one array."""
    return np.stack([rearrange(image, "rgb height width -> height width rgb").numpy() for image in images])


def as_images(frames: Frames) -> list[UInt8[Tensor, "3 height width"]]:
    """The frames of an array, as the model takes them."""
    return list(rearrange(torch.from_numpy(frames), "frames height width rgb -> frames rgb height width"))
