"""Random access to stored frames: any video's images from its shard, decoded to uint8.

Every row of a shard is a row group of its own, so reading a video touches its bytes alone, on a
disk or in an object store. A small number of open files is kept. A row is found by its video's key, so
a shard that was made again never gives another video's frames. Bytes that have changed since
they were written are noticed by their checksum, and never become pixels.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from pipelines.workspace.errors import UNREADABLE, DamagedFileError, StorageError
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shard_files import OpenShard
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

MAX_STORED_PIXELS = 1 << 25
"""Larger images were not written by the frames stage, and would take 100 MB each as pixels."""

_STORED = pa.schema([FRAMES.field("frames")])
_OPEN_SHARDS = 512
"""Few data sets have more; opening one again costs requests to the storage."""
_READERS = 32
"""Reads at once: a reader waits for the storage, and takes no processor meanwhile."""
_JPEG_START = b"\xff\xd8"
_MEND = "Run the same command again: the frames of its videos, and of no others, are made anew"


Frames = UInt8[np.ndarray, "frames height width 3"]
Pixels = UInt8[np.ndarray, "height width 3"]


class LostFramesError(ValueError):
    """Stored frames are missing or damaged; the message names the shard and what to do."""


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames of several videos, cropped and padded; padded frames are black and masked out.

    A pixel's three bytes lie together in memory, as decoders write them.
    """

    frames: UInt8[Tensor, "videos frames 3 height width"]
    mask: Bool[Tensor, "videos frames"]

    def put(self, row: int, images: Sequence[UInt8[Tensor, "3 height width"]]) -> None:
        """Fills a row with the centre squares of a video's ``images``.

        Raises:
            ValueError: an image is smaller than the squares.
        """
        # Written by NumPy, which uses only the calling thread, and does not care about PyTorch's inference mode.
        frames, mask = self.frames.numpy()[row], self.mask.numpy()[row]
        for position, image in enumerate(images):
            frames[position] = centre_crop(image, self.frames.shape[-1]).numpy()
        mask[: len(images)] = True


class FrameStore:
    """Reads the frames that the frames stage stored.

    Args:
        pool: folder of the shards.
        index: table with ``video_id``, ``key``, ``shard`` and ``row`` of the videos that have frames;
            videos are addressed by their position in it.
        threads: decoding threads.
    """

    def __init__(self, pool: Storage, index: pa.Table, *, threads: int = 4) -> None:
        self._pool = ShardPool(pool, FRAMES)
        self._shards: list[str] = index.column("shard").to_pylist()
        self._rows: list[int] = index.column("row").to_pylist()
        self._keys: list[str] = index.column("key").to_pylist()
        self.video_ids: list[str] = index.column("video_id").to_pylist()
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._files: OrderedDict[str, OpenShard] = OrderedDict()
        self._ahead: dict[int, Future[list[bytes]]] = {}
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._reasons: dict[str, str] = {}
        """Why shards were set aside, until it is said."""

    def __getstate__(self) -> dict[str, Any]:
        # Threads and open files stay behind when the store travels to another process.
        gone: dict[str, Any] = {
            "_executor": None,
            "_readers": None,
            "_files": OrderedDict(),
            "_ahead": {},
            "_locks": {},
        }
        return {name: value for name, value in (self.__dict__ | gone).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.video_ids)

    def encoded(self, video: int) -> list[bytes]:
        """The compressed images of a video, in temporal order.

        Raises:
            LostFramesError: its shard is missing or damaged; a damaged one is set aside.
            StorageError: the storage cannot be read.
        """
        with self._explaining(video):
            return self._read(video)

    @contextmanager
    def _explaining(self, video: int) -> Iterator[None]:
        """Gives the error of a lost shard the reason, which only one of the threads that read it has found out."""
        try:
            yield
        except LostFramesError as error:
            raise LostFramesError(self._reasons.pop(self._shards[video], str(error))) from error

    def _read(self, video: int) -> list[bytes]:
        shard = self._shards[video]
        try:
            table = self._open(shard).read([self._keys[video]], [self._rows[video]], _STORED.names)
            (row,) = table.cast(_STORED).to_pylist()
            images: list[bytes] = row["frames"]
            return images
        except FileNotFoundError:
            raise self._missing(shard) from None
        except (*UNREADABLE, LookupError) as error:
            raise self._explained(shard, error) from error

    def _open(self, shard: str) -> OpenShard:
        # Others may read meanwhile, and open other shards.
        with self._lock_of(shard):
            file = self._files.get(shard)
            if file is None:
                file = OpenShard(self._pool.storage, shard)
                with self._lock:
                    self._files[shard] = file
                    if len(self._files) > _OPEN_SHARDS:
                        self._files.popitem(last=False)
        return file

    def _lock_of(self, shard: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(shard, threading.Lock())

    def read_ahead(self, videos: Sequence[int]) -> None:
        """Begins to read ``videos``, which one of the next batches holds."""
        for video in videos:
            if video not in self._ahead:
                self._ahead[video] = self._reading().submit(self._read, video)

    def _reading(self) -> ThreadPoolExecutor:
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="frame-reader")
        return self._readers

    def _explained(self, shard: str, error: Exception) -> Exception:
        """What to raise where reading a shard failed; one that is damaged is set aside, by one of the threads."""
        with self._lock_of(shard):
            return self._looked_at(shard, error)

    def _looked_at(self, shard: str, error: Exception) -> Exception:
        self._files.pop(shard, None)
        try:
            self._pool.storage.require_whole_table(shard)
        except FileNotFoundError:
            return self._missing(shard)
        except DamagedFileError as damage:
            self._pool.set_aside(shard, damage)
            return self._reasoned(shard, LostFramesError(f"{damage}. It is set aside. {_MEND}"))
        if isinstance(error, OSError):
            return StorageError(f"cannot read {self._pool.storage.place(shard)}: {error}")
        reason = str(error) if isinstance(error, DamagedFileError) else "it has other rows"
        return self._reasoned(shard, self._foreign(shard, reason))

    def _reasoned(self, shard: str, error: LostFramesError) -> LostFramesError:
        self._reasons[shard] = str(error)
        return error

    def _missing(self, shard: str) -> LostFramesError:
        storage = self._pool.storage
        # If several readers meet a damaged shard, only one of them sets it aside.
        fate = "was damaged, and is set aside" if storage.was_set_aside(shard) else "is missing"
        return LostFramesError(f"{storage.place(shard)} {fate}. {_MEND}")

    def _foreign(self, shard: str, reason: str) -> LostFramesError:
        """What to raise about a whole file that the frames stage did not write; it is set aside."""
        message = f"{self._pool.storage.place(shard)} is not what the frames stage wrote: {reason}"
        self._pool.set_aside(shard, LostFramesError(message))
        return LostFramesError(f"{message}. It is set aside. {_MEND}")

    def decoded(self, video: int) -> list[UInt8[Tensor, "3 height width"]]:
        """The images of a video as uint8, in temporal order; raises as :meth:`encoded`."""
        encoded = self.encoded(video)
        with self._decoding(video):
            return decode_images(encoded)

    @contextmanager
    def _decoding(self, video: int) -> Iterator[None]:
        """Turns the ``ValueError`` of a stored image that cannot be used into a ``LostFramesError``."""
        try:
            yield
        except ValueError as error:
            raise self._foreign(self._shards[video], f"{self.video_ids[video]}: {error}") from error

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
        batch = empty_batch(len(videos), image_size_px=image_size_px, max_frames=max_frames)

        def put(row: int, encoded: Sequence[bytes]) -> None:
            with self._decoding(videos[row]):
                images = decode_images(encoded)
            if change is not None:
                images = as_images(change(row, as_channels_last(images)))
            batch.put(row, images)

        # A video is decoded while others are read.
        self.read_ahead(videos)
        reads = {video: self._ahead.pop(video) for video in set(videos)}

        def result(video: int) -> list[bytes]:
            with self._explaining(video):
                return reads[video].result()[:max_frames]

        encoded = map(result, videos)
        for _ in self._executor.map(put, range(len(videos)), encoded):
            pass
        return batch

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


def _decode(encoded: bytes) -> UInt8[Tensor, "3 height width"]:
    try:
        pixels = _decode_jpeg(encoded) if encoded.startswith(_JPEG_START) else _decode_png(encoded)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image cannot be used: {error}") from error
    return rearrange(torch.from_numpy(pixels), "height width rgb -> rgb height width")


def _decode_jpeg(encoded: bytes) -> Pixels:
    # simplejpeg uses the same library as PIL and gives the same pixels in half the time.
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    _check_size(height, width)
    pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
    return pixels


def _decode_png(encoded: bytes) -> Pixels:
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        _check_size(image.height, image.width)
        return np.array(image.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if width * height > MAX_STORED_PIXELS:
        raise ValueError(f"it has {width} × {height} pixels, more than {MAX_STORED_PIXELS:,}")


def empty_batch(videos: int, *, image_size_px: int, max_frames: int) -> FrameBatch:
    """A batch of black frames, all of them masked out."""
    # Allocated by NumPy, which asks the kernel for large pages: a quarter of the time that PyTorch needs.
    frames = np.zeros((videos, max_frames, image_size_px, image_size_px, 3), np.uint8)
    mask = torch.zeros(videos, max_frames, dtype=torch.bool)
    return FrameBatch(rearrange(torch.from_numpy(frames), "v f height width rgb -> v f rgb height width"), mask)


def stack_frames(
    videos: Sequence[Sequence[UInt8[Tensor, "3 height width"]]], *, image_size_px: int, max_frames: int
) -> FrameBatch:
    """One batch of the centre squares of every video's frames.

    Raises:
        ValueError: a stored image is smaller than the model's input.
    """
    batch = empty_batch(len(videos), image_size_px=image_size_px, max_frames=max_frames)
    for row, images in enumerate(videos):
        batch.put(row, images[:max_frames])
    return batch


def as_channels_last(images: Sequence[UInt8[Tensor, "3 height width"]]) -> Frames:
    """Frames of equal size as one array."""
    return np.stack([rearrange(image, "rgb height width -> height width rgb").numpy() for image in images])


def as_images(frames: Frames) -> list[UInt8[Tensor, "3 height width"]]:
    """The frames of an array, as the model takes them."""
    return list(rearrange(torch.from_numpy(frames), "frames height width rgb -> frames rgb height width"))
