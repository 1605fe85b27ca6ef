"""Random access to stored frames: any video's images from its shard, decoded to uint8.

Every row of a shard is a row group of its own, so reading a video touches its bytes alone, on a
disk or in an object store. A small number of open files is kept. Bytes that have changed since
they were written are noticed by their checksum, and never become pixels.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from einops import rearrange
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hbi_models.clip.preprocessing import centre_crop
from pipelines.records import FRAMES
from pipelines.shards import ShardPool
from pipelines.storage import UNREADABLE, DamagedFileError, Storage, StorageError

MAX_STORED_PIXELS = 1 << 25
"""Larger images are none of the frames stage's, and would take 100 MB each as pixels."""

_STORED = pa.schema([FRAMES.field("frames")])
_OPEN_SHARDS = 64
_MEND = "Run the same command again: the frames of its videos, and of no others, are made anew"


class LostFramesError(ValueError):
    """Stored frames are missing or damaged; the message names the shard and what to do."""


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames of several videos, cropped and padded; padded frames are black and masked out."""

    frames: UInt8[Tensor, "videos frames 3 height width"]
    mask: Bool[Tensor, "videos frames"]


class FrameStore:
    """Reads the frames that the frames stage stored.

    Args:
        pool: folder of the shards.
        index: table with ``video_id``, ``shard`` and ``row`` of the videos that have frames; videos
            are addressed by their position in it.
        threads: reading and decoding threads.
    """

    def __init__(self, pool: Storage, index: pa.Table, *, threads: int = 4) -> None:
        self._pool = ShardPool(pool, FRAMES)
        self._shards: list[str] = index.column("shard").to_pylist()
        self._rows: list[int] = index.column("row").to_pylist()
        self.video_ids: list[str] = index.column("video_id").to_pylist()
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Threads and open files stay behind when the store travels to another process.
        return {**self.__dict__, "_executor": None, "_files": OrderedDict()}

    def __len__(self) -> int:
        return len(self.video_ids)

    def encoded(self, video: int) -> list[bytes]:
        """The compressed images of a video, in temporal order.

        Raises:
            LostFramesError: its shard is missing or damaged; a damaged one is set aside.
            StorageError: the storage cannot be read.
        """
        shard = self._shards[video]
        try:
            table = self._open(shard).read_row_group(self._rows[video], columns=["frames"])
            (row,) = table.cast(_STORED).to_pylist()
            images: list[bytes] = row["frames"]
            return images
        except FileNotFoundError:
            raise LostFramesError(f"{self._pool.storage.place(shard)} is missing. {_MEND}") from None
        except (*UNREADABLE, LookupError) as error:
            raise self._explained(shard, error) from error

    def _open(self, shard: str) -> pq.ParquetFile:
        file = self._files.get(shard)
        if file is None:
            storage = self._pool.storage
            source = storage.filesystem.open_input_file(storage.path(shard))
            file = pq.ParquetFile(source, page_checksum_verification=True)
            self._files[shard] = file
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        return file

    def _explained(self, shard: str, error: Exception) -> Exception:
        """What to raise where reading a shard failed; one that is damaged is set aside."""
        self._files.pop(shard, None)
        try:
            self._pool.storage.require_whole_table(shard)
        except FileNotFoundError:
            return LostFramesError(f"{self._pool.storage.place(shard)} is missing. {_MEND}")
        except DamagedFileError as damage:
            self._pool.set_aside(shard, damage)
            return LostFramesError(f"{damage}. It is set aside. {_MEND}")
        if isinstance(error, OSError):
            return StorageError(f"cannot read {self._pool.storage.place(shard)}: {error}")
        return self._foreign(shard, "it has other rows than its index says")

    def _foreign(self, shard: str, reason: str) -> LostFramesError:
        """What to raise about a whole file that the frames stage did not write; it is set aside."""
        message = f"{self._pool.storage.place(shard)} is not what the frames stage wrote: {reason}"
        self._pool.set_aside(shard, LostFramesError(message))
        return LostFramesError(f"{message}. It is set aside. {_MEND}")

    def decoded(self, video: int) -> list[UInt8[Tensor, "3 height width"]]:
        """The images of a video as uint8, in temporal order; raises as :meth:`encoded`."""
        return self._decoded(video, self.encoded(video))

    def _decoded(self, video: int, encoded: Sequence[bytes]) -> list[UInt8[Tensor, "3 height width"]]:
        try:
            return decode_images(encoded)
        except ValueError as error:
            raise self._foreign(self._shards[video], f"{self.video_ids[video]}: {error}") from error

    def batch(self, videos: Sequence[int], *, image_size_px: int, max_frames: int) -> FrameBatch:
        """Frames of ``videos``, centre-cropped to squares and padded to ``max_frames``; raises as :meth:`encoded`."""
        encoded = [self.encoded(video) for video in videos]
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        images = self._executor.map(self._decoded, videos, encoded)
        return stack_frames(list(images), image_size_px=image_size_px, max_frames=max_frames)


def decode_images(encoded: Sequence[bytes]) -> list[UInt8[Tensor, "3 height width"]]:
    """JPEG or PNG images as uint8 tensors.

    Raises:
        ValueError: one is something else, or larger than ``MAX_STORED_PIXELS``.
    """
    return [_decode(image) for image in encoded]


def _decode(encoded: bytes) -> UInt8[Tensor, "3 height width"]:
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_STORED_PIXELS:
                raise ValueError(f"it has {image.width} × {image.height} pixels, more than {MAX_STORED_PIXELS:,}")
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image cannot be used: {error}") from error
    return rearrange(pixels, "height width rgb -> rgb height width").contiguous()


def stack_frames(
    videos: Sequence[Sequence[UInt8[Tensor, "3 height width"]]], *, image_size_px: int, max_frames: int
) -> FrameBatch:
    """One batch of the centre squares of every video's frames.

    Raises:
        ValueError: a stored image is smaller than the model's input.
    """
    frames = torch.zeros(len(videos), max_frames, 3, image_size_px, image_size_px, dtype=torch.uint8)
    mask = torch.zeros(len(videos), max_frames, dtype=torch.bool)
    for row, images in enumerate(videos):
        for position, image in enumerate(images[:max_frames]):
            frames[row, position] = centre_crop(image, image_size_px)
            mask[row, position] = True
    return FrameBatch(frames, mask)


def as_channels_last(images: Sequence[UInt8[Tensor, "3 height width"]]) -> NDArray[np.uint8]:
    """Frames of equal size as one array [frames, height, width, 3]."""
    return rearrange(torch.stack(list(images)), "frames rgb height width -> frames height width rgb").numpy()
