"""Token features of videos as rows of Parquet: written by the index stage, read for exact ranking."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from hbi_models.axes import TokenLevel
from hbi_models.configs import LEVELS
from hbi_models.token_merging import TokenMerge
from hbi_models.zero_shot import ZeroShotModel
from pipelines.models.encoding import Encoder, Levels, encode_videos
from pipelines.models.weights import load_encoder
from pipelines.resources.device import compute_device
from pipelines.resources.sharded_work import SUMMARY
from pipelines.search.first_pass import video_vectors
from pipelines.video.frame_store import FrameStore
from pipelines.video.shown import shown_until
from pipelines.workspace.errors import UNREADABLE, DamagedFileError, StorageError
from pipelines.workspace.records import FEATURES
from pipelines.workspace.shard_files import OpenShard
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

# In the order in which FeatureStore._clip takes them: the lists first, the only single number last.
_READ = ("tokens", "features", "logits", "time_s", "end_s")
# More than the 200 candidates of a query, each of which may lie in a shard of its own.
_OPEN_SHARDS = 256
_THREADS = 8


@dataclass(frozen=True)
class Clip:
    """The features and times of a video."""

    levels: Levels
    """Of this video alone, padded to the tokens of the longest video that the model takes."""

    time_s: Sequence[float]
    """When each of its frames is shown."""

    end_s: float
    """When the last one ends."""


def pack(levels: Levels, video: int) -> dict[str, Any]:
    """The real tokens of a video as the columns ``tokens``, ``features`` and ``logits``."""
    masks = [level.mask[video] for level in levels]
    return {
        "tokens": [int(mask.sum()) for mask in masks],
        "features": np.concatenate(
            [level.features[video][mask].half().flatten().numpy() for level, mask in zip(levels, masks, strict=True)]
        ),
        "logits": np.concatenate(
            [level.logits[video][mask].float().numpy() for level, mask in zip(levels, masks, strict=True)]
        ),
    }


def unpack(tokens: Sequence[int], features: Any, logits: Any, sizes: Sequence[int]) -> Levels:
    """The levels of one video, padded to ``sizes``.

    Raises:
        DamagedFileError: the numbers do not fit together.
    """
    counts = list(tokens)
    # The width of the features is not stored. The next lines check that it is a whole number.
    dim = len(features) // max(sum(counts), 1)
    if len(counts) != len(sizes) or len(logits) != sum(counts) or len(features) != dim * sum(counts):
        raise DamagedFileError(f"a row of features has {len(features)} numbers for {counts} tokens")
    if any(not 0 <= count <= size for count, size in zip(counts, sizes, strict=True)):
        raise DamagedFileError(f"a row of features has {counts} tokens; the model makes up to {list(sizes)}")
    levels, start = [], 0
    flat, scores = torch.tensor(features, dtype=torch.float32).view(-1, max(dim, 1)), torch.tensor(logits)
    for count, size in zip(counts, sizes, strict=True):
        rows = slice(start, start + count)
        padded, padded_scores = torch.zeros(1, size, max(dim, 1)), torch.zeros(1, size)
        padded[0, :count], padded_scores[0, :count] = flat[rows], scores[rows]
        levels.append(TokenLevel(padded, (torch.arange(size) < count)[None], padded_scores))
        start += count
    return tuple(levels)


def level_sizes(model: Encoder) -> list[int]:
    """Tokens of the longest video at each level."""
    if isinstance(model, ZeroShotModel):
        return [model.config.max_frames]
    merges = cast(Mapping[str, TokenMerge], model.video_merges)
    return [model.config.max_frames, *(merges[level].num_clusters for level in LEVELS[1:])]


class EncodeShard:
    """Encodes the videos of one shard; the callable class of the index stage.

    Args:
        model: folder of the retrieval model.
        frames_pool: where the frames are.
        pool: where the features go.
        generation: the pool's generation that they belong to.
        batch_size: videos encoded at once.
    """

    def __init__(
        self, model: Storage, frames_pool: ShardPool, pool: ShardPool, generation: int, batch_size: int
    ) -> None:
        self._device = compute_device()
        with TemporaryDirectory() as scratch:
            self._model = load_encoder(model, Path(scratch)).to(self._device)
        self._frames_pool, self._pool = frames_pool, pool
        self._generation, self._batch_size = generation, batch_size

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        """Reads ``video_id``, ``key``, ``shard``, ``row`` (of the frames) and ``end_s``; returns a summary row."""
        store = FrameStore(self._frames_pool.storage, videos)
        times = self._times(videos.column("shard").unique().to_pylist())
        levels = encode_videos(self._model, store, range(len(videos)), device=self._device, batch_size=self._batch_size)
        config = self._model.config
        vectors = video_vectors(levels, config.level_rates, config.game.coalitions).half().numpy()
        rows = []
        for position, video in enumerate(videos.to_pylist()):
            source = times[video["key"]]
            rows.append(
                {
                    "video_id": video["video_id"],
                    "key": video["key"],
                    "coarse": vectors[position],
                    **pack(levels, position),
                    "time_s": source["time_s"],
                    "end_s": shown_until(source, video["end_s"]),
                }
            )
        size = self._pool.commit(rows, generation=self._generation)
        units = sum(len(row["time_s"]) for row in rows)
        return pa.Table.from_pylist([{"rows": len(rows), "errors": 0, "units": units, "bytes": size}], schema=SUMMARY)

    def _times(self, shards: Sequence[str]) -> dict[str, dict[str, Any]]:
        # All of these stand in the directory of a shard, so no image is read.
        columns = ["key", "time_s", "source_fps", "source_frames", "source_begin_s"]
        tables = [self._frames_pool.read(shard, columns) for shard in shards]
        return {row["key"]: row for table in tables for row in table.to_pylist()}


class FeatureStore:
    """Random access to the features of videos; a video is addressed by its position in ``index``.

    Args:
        pool: the shards.
        index: ``key``, ``shard`` and ``row`` of every video.
        sizes: see :func:`level_sizes`.
    """

    def __init__(self, pool: Storage, index: pa.Table, sizes: Sequence[int]) -> None:
        self._pool, self._sizes = ShardPool(pool, FEATURES), list(sizes)
        self._keys, self._shards, self._rows = (index.column(name).combine_chunks() for name in ("key", "shard", "row"))
        self._files: OrderedDict[str, OpenShard] = OrderedDict()
        self._threads = ThreadPoolExecutor(_THREADS)
        # Guards _files. Without it one search could remove a shard that another has just opened, whose KeyError would
        # then pass for damage.
        self._lock = Lock()

    def clips(self, positions: Sequence[int]) -> list[Clip]:
        """The videos at ``positions``, in their order.

        Raises:
            FileNotFoundError: a shard is missing.
            DamagedFileError: a shard is damaged, or holds other videos; it is set aside, if this process may rename it.
            StorageError: a shard cannot be read.
        """
        by_shard: dict[str, dict[int, int]] = {}
        for place, position in enumerate(positions):
            by_shard.setdefault(self._shards[position].as_py(), {})[place] = position
        found: dict[int, Clip] = {}
        with self._lock:
            # One task for each shard, so that no two threads open the same one.
            for part in self._threads.map(self._read, by_shard.items()):
                found |= part
            # Only after all is read, so that a search of very many shards does not close what it still needs.
            while len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        return [found[place] for place in range(len(positions))]

    def _read(self, wanted: tuple[str, Mapping[int, int]]) -> dict[int, Clip]:
        shard, positions = wanted
        keys, rows = (
            [column[position].as_py() for position in positions.values()] for column in (self._keys, self._rows)
        )
        try:
            table = self._open(shard).read(keys, rows, _READ)
            columns = [table.column(name).combine_chunks() for name in _READ]
            return {place: self._clip(columns, row) for row, place in enumerate(positions)}
        except FileNotFoundError:
            raise FileNotFoundError(f"{self._pool.storage.place(shard)} is missing; run jobs.index again") from None
        except (*UNREADABLE, LookupError) as error:
            # When jobs.index makes the shard again it has the same name, and the next search must open the new file.
            self._files.pop(shard, None)
            raise self._explained(shard, error) from error

    def _explained(self, shard: str, error: Exception) -> Exception:
        """What to raise if reading a shard failed. A damaged shard is set aside, if this process may rename it."""
        storage = self._pool.storage
        try:
            # Reading all of it tells damage from a storage that does not answer; only a damaged shard may be set aside.
            storage.require_whole_table(shard)
        except DamagedFileError as damage:
            found = damage
        else:
            if isinstance(error, OSError):
                return StorageError(f"cannot read {storage.place(shard)}: {error}")
            found = DamagedFileError(f"{storage.place(shard)} is not what jobs.index wrote: {error}")
        with suppress(StorageError):
            self._pool.set_aside(shard, found)
        return DamagedFileError(f"{found}; run jobs.index again")

    def _clip(self, columns: Sequence[Any], row: int) -> Clip:
        tokens, features, logits, time_s = (column[row].values.to_numpy() for column in columns[:-1])
        return Clip(unpack(tokens.tolist(), features, logits, self._sizes), time_s.tolist(), columns[-1][row].as_py())

    def _open(self, shard: str) -> OpenShard:
        if shard not in self._files:
            self._files[shard] = OpenShard(self._pool.storage, shard)
        self._files.move_to_end(shard)
        return self._files[shard]


def together(clips: Sequence[Clip]) -> Levels:
    """The levels of several videos as one batch; all are padded to the same sizes."""
    return tuple(
        TokenLevel(
            features=torch.cat([level.features for level in levels]),
            mask=torch.cat([level.mask for level in levels]),
            logits=torch.cat([level.logits for level in levels]),
        )
        for levels in zip(*(clip.levels for clip in clips), strict=True)
    )
