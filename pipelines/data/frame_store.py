"""Random access to stored frames: any video's images from its shard, decoded to uint8.

Every row of a shard is a row group of its own, so reading a video touches its bytes alone, on a
disk or in an object store. A small number of open files is kept.
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
from pipelines.storage import Storage

_OPEN_SHARDS = 64


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
        self._pool = pool
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
        """The compressed images of a video, in temporal order."""
        shard = self._shards[video]
        file = self._files.get(shard)
        if file is None:
            file = pq.ParquetFile(self._pool.filesystem.open_input_file(self._pool.path(shard)))
            self._files[shard] = file
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        table = file.read_row_group(self._rows[video], columns=["frames"])
        return table.column("frames")[0].as_py()  # type: ignore[no-any-return]

    def decoded(self, video: int) -> list[UInt8[Tensor, "3 height width"]]:
        """The images of a video as uint8, in temporal order."""
        return decode_images(self.encoded(video))

    def batch(self, videos: Sequence[int], *, image_size_px: int, max_frames: int) -> FrameBatch:
        """Frames of ``videos``, centre-cropped to squares and padded to ``max_frames``."""
        encoded = [self.encoded(video) for video in videos]
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        images = self._executor.map(decode_images, encoded)
        return stack_frames(list(images), image_size_px=image_size_px, max_frames=max_frames)


def decode_images(encoded: Sequence[bytes]) -> list[UInt8[Tensor, "3 height width"]]:
    """JPEG or PNG images as uint8 tensors."""
    return [_decode(image) for image in encoded]


def _decode(encoded: bytes) -> UInt8[Tensor, "3 height width"]:
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
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
