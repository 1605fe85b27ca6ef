"""Stored features of words and frames: those of a split in memory where they fit, else read batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import TokenFeatures
from hbi_models.config_fields import require
from pipelines.recipe.features import FeatureType
from pipelines.workspace.records import tokens_schema
from pipelines.workspace.shard_rows import ReadAhead, ShardRows
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

_READ = ("frames", "num_frames", "views", "words", "texts", "max_words", "num_words")


class TokenStore:
    """Features of videos and their texts; a video is addressed by its position in ``index``.

    Args:
        pool: folder of the shards.
        index: table with ``video_id``, ``key``, ``shard``, ``row`` and ``bytes`` of the videos.
        dtype: how numbers are stored.
        max_memory_gb: features up to this size in GB are read at once and kept.
    """

    def __init__(self, pool: Storage, index: pa.Table, *, dtype: FeatureType, max_memory_gb: float) -> None:
        self._stored = ShardRows(ShardPool(pool, tokens_schema(dtype)), index, stage="features")
        self.video_ids: list[str] = index.column("video_id").to_pylist()
        self.fits_memory = sum(index.column("bytes").to_pylist()) <= max_memory_gb * 1e9
        self._dtype: FeatureType = dtype
        self._whole: _Tokens | None = None
        self._recent: tuple[dict[int, int], _Tokens] | None = None
        """The videos that were read last, kept because words, frames and views are asked for one after the other."""
        self._ahead: ReadAhead[pa.Table] = ReadAhead()

    def __getstate__(self) -> dict[str, Any]:
        # A store that is sent to another process leaves its features behind.
        return {**self.__dict__, "_whole": None, "_recent": None}

    def __len__(self) -> int:
        return len(self.video_ids)

    def views(self, videos: Sequence[int]) -> list[int]:
        """How many augmented copies of each of ``videos`` there are; raises as :meth:`frames`."""
        tokens, places = self._of(videos)
        return [int(tokens.views[place]) - 1 for place in places]

    def frames(self, videos: Sequence[int], *, max_frames: int, views: Sequence[int] | None = None) -> TokenFeatures:
        """Frame features of ``videos`` as stored, padded to ``max_frames`` with 0; later frames are left out.

        Args:
            videos: which videos, in the order of the batch.
            max_frames: tokens of the result.
            views: which copy of each, from 1; by default 0, the clip as it is.

        Raises:
            LostRowsError: a shard is missing or damaged; a damaged one is set aside.
            StorageError: the storage cannot be read.
        """
        tokens, places = self._of(videos)
        counts = tokens.num_frames[places]
        # The copies of a clip lie one behind the other, the clip as it is first.
        starts = tokens.frame_starts[places] + np.asarray(0 if views is None else views) * counts
        return _padded(tokens.frames, starts, np.minimum(counts, max_frames), max_frames)

    def words(self, texts: Sequence[tuple[int, str]], *, max_words: int) -> TokenFeatures:
        """Word features of texts of videos as stored, padded to ``max_words`` with 0; raises as :meth:`frames`.

        Raises:
            ValueError: there are none of a text, cut at ``max_words`` tokens.
        """
        tokens, places = self._of([video for video, _ in texts])
        found = [
            # 0 stands for a text that was not cut.
            tokens.texts[place].get((max_words, text)) or tokens.texts[place].get((0, text))
            for place, (_, text) in zip(places, texts, strict=True)
        ]
        missing = [text for text, place in zip(texts, found, strict=True) if place is None]
        if missing:
            video, text = missing[0]
            raise ValueError(
                f"there are no features of {text!r:.80} of {self.video_ids[video]}, cut at {max_words} tokens, and of "
                f"{len(missing) - 1:,} other texts of the batch; run the same command again with --force features"
            )
        spans = np.asarray([place for place in found if place is not None], np.int64).reshape(-1, 2)
        longest = int(spans[:, 1].max(initial=0))
        require(
            longest <= max_words,
            f"a text of {longest} words is stored and model.max_words is {max_words}; raise it to {longest}",
        )
        return _padded(tokens.words, spans[:, 0], spans[:, 1], max_words)

    def batches(self, blocks: Sequence[Sequence[int]], *, max_frames: int) -> Generator[TokenFeatures, None, None]:
        """The frame features of each block of videos; the next block is read while the caller works on one."""
        for number, block in enumerate(blocks):
            for videos in blocks[number : number + 2]:
                self.read_ahead(videos)
            yield self.frames(block, max_frames=max_frames)

    def read_ahead(self, videos: Sequence[int]) -> None:
        """Begins to read ``videos``, which one of the next batches holds, unless all are in memory."""
        if not self.fits_memory:
            self._ahead.begin(videos, self._row)

    def _of(self, videos: Sequence[int]) -> tuple[_Tokens, Any]:
        """Features that hold ``videos``, and where each is among them."""
        if self.fits_memory:
            if self._whole is None:
                with self._stored.explaining():
                    rows = self._stored.read(range(len(self)), _READ)
                self._whole = self._checked(range(len(self)), rows)
            return self._whole, np.asarray(videos, np.int64)
        if self._recent is None or not self._recent[0].keys() >= set(videos):
            distinct = list(dict.fromkeys(videos))
            reads = self._ahead.take(distinct, self._row)
            with self._stored.explaining():
                # An empty table first, so that there are columns where there are no videos.
                parts = [self._stored.read([], _READ), *(reads[video].result() for video in distinct)]
            tokens = self._checked(distinct, pa.concat_tables(parts))
            self._recent = {video: place for place, video in enumerate(distinct)}, tokens
        places, tokens = self._recent
        return tokens, np.asarray([places[video] for video in videos], np.int64)

    def _row(self, video: int) -> pa.Table:
        return self._stored.read([video], _READ)

    def _checked(self, videos: Sequence[int], rows: pa.Table) -> _Tokens:
        try:
            return _Tokens.of(rows.combine_chunks(), self._dtype)
        except _ForeignRowError as error:
            raise self._stored.foreign(videos[error.row], f"{self.video_ids[videos[error.row]]}: {error}") from error


class _ForeignRowError(ValueError):
    """A row whose numbers do not fit together."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class _Tokens:
    """Features of some videos; after the last token of each kind comes one of zeros, for padding."""

    frames: Float[Tensor, "tokens dim"]
    frame_starts: Any
    num_frames: Any
    views: Any
    words: Float[Tensor, "tokens dim"]
    texts: list[dict[tuple[int, str], tuple[int, int]]]
    """Of each video: where the words of a text begin and how many they are, by where it was cut and what it is."""

    @classmethod
    def of(cls, table: pa.Table, dtype: FeatureType) -> _Tokens:
        """From rows of a pool.

        Raises:
            _ForeignRowError: a row's numbers do not fit together.
        """
        num_frames, views = (table.column(name).to_numpy().astype(np.int64) for name in ("num_frames", "views"))
        counts = table.column("num_words").to_pylist()
        word_counts = np.asarray([sum(numbers) for numbers in counts], np.int64)
        frames, frame_starts = _flat(table.column("frames"), num_frames * views, dtype)
        words, word_starts = _flat(table.column("words"), word_counts, dtype)
        texts = []
        rows = zip(counts, table.column("texts").to_pylist(), table.column("max_words").to_pylist(), strict=True)
        for row, (numbers, said, cuts) in enumerate(rows):
            if not len(numbers) == len(said) == len(cuts):
                raise _ForeignRowError(row, f"{len(said)} texts have {len(numbers)} lengths and {len(cuts)} cuts")
            starts = itertools.accumulate(numbers, initial=int(word_starts[row]))
            spans = zip(starts, numbers, strict=False)
            texts.append(dict(zip(zip(cuts, said, strict=True), spans, strict=True)))
        return cls(frames, frame_starts, num_frames, views, words, texts)


def _flat(column: pa.ChunkedArray, counts: Any, dtype: FeatureType) -> tuple[Tensor, Any]:
    """All tokens of a column of rows with so many tokens each, a token of zeros, and where each row begins."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.diff(lists.offsets.to_numpy())
    filled = counts > 0
    dims = np.unique(lengths[filled] // np.maximum(counts[filled], 1))
    dim = int(dims[0]) if len(dims) else 1
    wrong = np.flatnonzero(lengths != counts * dim)
    if len(wrong):
        row = int(wrong[0])
        raise _ForeignRowError(row, f"it has {lengths[row]:,} numbers for {counts[row]:,} tokens of {dim} channels")
    # Not `lists.values`, which still has what a slice leaves out.
    values = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    tokens = torch.from_numpy(np.concatenate([values, np.zeros((1, dim), dtype)]))
    return tokens, np.cumsum(counts) - counts


def _padded(tokens: Float[Tensor, "stored dim"], starts: Any, counts: Any, size: int) -> TokenFeatures:
    """``counts`` tokens from each of ``starts`` on, padded to ``size`` with the last of ``tokens``."""
    mask = np.arange(size) < counts[:, None]
    places = np.where(mask, starts[:, None] + np.arange(size), len(tokens) - 1)
    return TokenFeatures(tokens[torch.from_numpy(places)], torch.from_numpy(mask))
