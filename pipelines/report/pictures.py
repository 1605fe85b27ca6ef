"""Pictures inside the page: thumbnails of videos and figures, as data URIs."""

from __future__ import annotations

import base64
import io

import pyarrow as pa
from PIL import Image

from pipelines.video.frame_store import FrameStore
from pipelines.workspace.storage import Storage

_SIDE_PX = 96


class Thumbnails:
    """The middle frame of a video, small enough to show hundreds.

    Args:
        pool: folder of the frame shards.
        index: the table of the frames artifact.
    """

    def __init__(self, pool: Storage, index: pa.Table) -> None:
        self._store = FrameStore(pool, index)
        self._places = {video_id: place for place, video_id in enumerate(self._store.video_ids)}
        self._made: dict[str, str] = {}

    def encoded(self, video_id: str) -> list[bytes]:
        """The compressed frames of a video that has some."""
        return self._store.encoded(self._places[video_id])

    def of(self, video_id: str) -> str:
        """The data URI of a video's thumbnail."""
        if video_id not in self._made:
            frames = self.encoded(video_id)
            self._made[video_id] = _small(frames[len(frames) // 2])
        return self._made[video_id]


def data_uri(kind: str, content: bytes) -> str:
    """A picture of a kind such as ``png`` as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _small(encoded: bytes) -> str:
    # The formats in which frames are stored; Pillow tries no other of its decoders.
    with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        small = image.convert("RGB")
        # The height bounds all but very wide pictures, so that those in a row are equally high.
        small.thumbnail((_SIDE_PX * 2, _SIDE_PX))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
    return data_uri("jpeg", buffer.getvalue())
