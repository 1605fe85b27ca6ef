"""One split as training and evaluation see it: videos that have frames, with their captions or questions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.config_fields import require
from pipelines.datasets.annotations import Question
from pipelines.datasets.answers import Vocabulary
from pipelines.recipe.data import Split
from pipelines.recipe.training import ValidationHalf
from pipelines.video.frame_store import FrameStore
from pipelines.video.token_store import TokenStore
from pipelines.workspace.errors import examples
from pipelines.workspace.records import ERRORS_FILE, INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.storage import Storage

_NAMED = 5

Store = FrameStore | TokenStore
"""What models read of videos: frames, or features of them and of their texts."""

MakeStore = Callable[[Storage, pa.Table], Store]
"""Makes a store from the folder of the shards and the index of the videos; it travels to other processes."""


class SplitView:
    """Videos of one split with frames and captions, in the order of the manifest; a video is addressed by its position.

    Args:
        manifest: folder of the manifest artifact.
        frames: folder of the frames artifact, or of the features artifact.
        pool: folder of its shards.
        split: which split.
        store: reads them.

    Raises:
        ValueError: the frames artifact knows nothing of some of the videos.
    """

    def __init__(
        self, manifest: Storage, frames: Storage, pool: Storage, split: Split, *, store: MakeStore = FrameStore
    ) -> None:
        table = manifest.read_table(MANIFEST_FILE, columns=["video_id", "split", "captions"])
        table = table.filter(pc.equal(table.column("split"), split)).select(["video_id", "captions"])
        joined, without_frames = _with_frames(table.column("video_id"), frames)
        captions = table.column("captions").take(joined.column("place"))
        has_captions = pc.greater(pc.list_value_length(captions), 0)
        without_texts = joined.filter(pc.invert(has_captions)).column("video_id").to_pylist()
        self._captions = captions.filter(has_captions)
        self.texts_per_video: list[int] = pc.list_value_length(self._captions).to_pylist()
        self.store = store(pool, joined.filter(has_captions))
        self.split = split
        self.without_frames, self.without_texts = len(without_frames), len(without_texts)
        """How many videos of the split have no frames, and how many no caption."""
        self.left_out = _describe_left_out(split, len(table), without_frames, without_texts)
        """What of the split cannot be trained or tested with, in words; None = nothing."""

    def __len__(self) -> int:
        return len(self.store)

    def require_captions(self, setting: str) -> None:
        """Refuses a split that ``setting`` chose, if there is nothing to test in it.

        Raises:
            ValueError: the split has no video with frames and captions.
        """
        require(
            len(self) > 0,
            f"{setting} is {self.split!r}, and no video of that split has frames and captions "
            f"({self.left_out or 'the manifest lists none'}); choose another split",
        )

    def texts(self, video: int) -> list[str]:
        """The captions of the video at a position."""
        captions: list[str] = self._captions[video].as_py()
        return captions

    def texts_of(self, videos: Sequence[int]) -> tuple[list[str], list[int], list[int]]:
        """All captions of ``videos``: the texts, the position of each one's video, its number there."""
        pairs = [(text, video, number) for video in videos for number, text in enumerate(self.texts(video))]
        return [text for text, _, _ in pairs], [video for _, video, _ in pairs], [number for _, _, number in pairs]


class QuestionView:
    """Videos with questions of one split in the order of the manifest; a video is addressed by its position.

    The split is that of the questions, which may differ from their video's.

    Args:
        manifest: folder of the manifest artifact.
        frames: folder of the frames artifact, or of the features artifact.
        pool: folder of its shards.
        split: which split.
        store: reads them.
        answerable_by: leave out questions whose answer is not in this vocabulary, and videos without others.

    Raises:
        ValueError: the frames artifact knows nothing of some of the videos.
    """

    def __init__(
        self,
        manifest: Storage,
        frames: Storage,
        pool: Storage,
        split: Split,
        *,
        store: MakeStore = FrameStore,
        answerable_by: Vocabulary | None = None,
    ) -> None:
        asked: dict[str, list[Question]] = {}
        table = manifest.read_table(MANIFEST_FILE, columns=["video_id", "questions"])
        for row in table.to_pylist():
            kept = [
                Question(item["question"], item["answer"], item["type"], split)
                for item in row["questions"]
                if item["split"] == split and (answerable_by is None or item["answer"] in answerable_by)
            ]
            if kept:
                asked[row["video_id"]] = kept
        joined, without_frames = _with_frames(pa.chunked_array([list(asked)], pa.string()), frames)
        self.store = store(pool, joined)
        self._questions = [asked[video_id] for video_id in self.store.video_ids]
        self.texts_per_video = [len(questions) for questions in self._questions]
        self.without_frames = len(without_frames)
        """How many videos with questions of the split have no frames."""
        self.left_out = _describe_left_out(split, len(asked), without_frames, [])
        """What of the split cannot be trained or tested with, in words; None = nothing."""

    def __len__(self) -> int:
        return len(self.store)

    def questions(self, video: int) -> list[Question]:
        """The questions about the video at a position."""
        return self._questions[video]

    def texts(self, video: int) -> list[str]:
        """The texts of the questions about the video at a position."""
        return [question.question for question in self._questions[video]]


def positions_of_half(video_ids: Sequence[str], half: ValidationHalf | None) -> list[int]:
    """The positions of one half of the videos, by a hash of their ids; None = all. With an odd number, ``choosing`` has
    one more."""
    if half is None:
        return list(range(len(video_ids)))
    drawn = sorted(range(len(video_ids)), key=lambda video: hashlib.sha256(video_ids[video].encode()).digest())
    return sorted(drawn[0 if half == "choosing" else 1 :: 2])


def _with_frames(video_ids: pa.ChunkedArray, frames: Storage) -> tuple[pa.Table, list[str]]:
    """Those of ``video_ids`` that have frames, and the others.

    The former with ``video_id``, ``place`` in the given order, ``key``, ``shard``, ``row`` and, of features, ``bytes``.
    """
    index = frames.read_table(INDEX_FILE)
    index = index.select([name for name in ("video_id", "key", "shard", "row", "bytes") if name in index.column_names])
    places = pa.table({"video_id": video_ids, "place": pa.array(range(len(video_ids)), pa.int64())})
    # A join returns rows in any order; `place` brings back the given one.
    found = places.join(index, "video_id", join_type="inner").sort_by("place").combine_chunks()
    others: list[str] = video_ids.filter(pc.invert(pc.is_in(video_ids, found.column("video_id")))).to_pylist()
    if others:
        failed = frames.read_table(ERRORS_FILE, columns=["video_id"]).column("video_id").to_pylist()
        unknown = sorted(set(others).difference(failed))
        require(
            not unknown,
            f"{len(unknown):,} of {len(video_ids):,} videos are neither among the frames in {frames.place()} nor among "
            f"the errors there: {examples(unknown, limit=_NAMED)}. Run the same command again with --force frames",
        )
    return found, others


def _describe_left_out(
    split: Split, total: int, without_frames: Sequence[str], without_texts: Sequence[str]
) -> str | None:
    parts = [
        f"{len(names):,} have no {what} ({examples(names, limit=_NAMED)}{hint})"
        for names, what, hint in (
            (without_frames, "frames", f"; {ERRORS_FILE} of the stage frames says why"),
            (without_texts, "caption", ""),
        )
        if names
    ]
    left_out = len(without_frames) + len(without_texts)
    return f"{left_out:,} of {total:,} videos of {split} are left out: {' and '.join(parts)}" if parts else None
