"""One split as training and evaluation see it: videos that have frames, with their captions."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.configs import Split
from pipelines.data.frame_store import FrameStore
from pipelines.records import INDEX_FILE, MANIFEST_FILE
from pipelines.storage import Storage


class SplitView:
    """Videos of one split in the order of the manifest; a video is addressed by its position.

    Args:
        manifest: folder of the manifest artifact.
        frames: folder of the frames artifact.
        pool: folder of the frame shards.
        split: which split.
    """

    def __init__(self, manifest: Storage, frames: Storage, pool: Storage, split: Split) -> None:
        table = manifest.read_table(MANIFEST_FILE, columns=["video_id", "split", "captions"])
        table = table.filter(pc.equal(table.column("split"), split)).select(["video_id", "captions"])
        index = frames.read_table(INDEX_FILE, columns=["video_id", "shard", "row"])
        joined = table.append_column("place", pa.array(range(len(table)), pa.int64())).select(["video_id", "place"])
        joined = joined.join(index, "video_id", join_type="inner").sort_by("place").combine_chunks()
        self._captions = table.column("captions").take(joined.column("place"))
        self.captions_per_video: list[int] = pc.list_value_length(self._captions).to_pylist()
        self.store = FrameStore(pool, joined)

    def __len__(self) -> int:
        return len(self.store)

    def captions(self, video: int) -> list[str]:
        """The captions of the video at a position."""
        return self._captions[video].as_py()  # type: ignore[no-any-return]

    def texts_of(self, videos: Sequence[int]) -> tuple[list[str], list[int], list[int]]:
        """All captions of ``videos``: the texts, the position of each one's video, its number there."""
        pairs = [(text, video, number) for video in videos for number, text in enumerate(self.captions(video))]
        return [text for text, _, _ in pairs], [video for _, video, _ in pairs], [number for _, _, number in pairs]
