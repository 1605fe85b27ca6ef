"""Keyed shards: with them a stage over videos does only what is missing, and a crash costs one shard at most.

A pool is a folder of Parquet files. Every row has a ``key``, a digest of what it was made from.
A shard is written in one commit under a name made from its keys, its rows in the order of their keys,
so a task that runs twice writes the same file twice. A pool is named by the stage's settings and version alone: when
videos are added to the manifest, the work on the old ones is still found.

A run that is asked to do its work again begins a new generation of the pool, which is a number at the end of its
shards' names. Older shards stay, because finished artifacts point into them; an index made later points at the newest
row of each key. ``jobs.gc`` removes shards that nothing points at.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.shard_files import directory_entry, read_directory
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name

logger = logging.getLogger(__name__)

SHARDS = "shards"
"""Folder of a workspace with the pools that stages of several runs share."""

_GENERATION_FILE = "generation.json"
"""In the folder of a stage that was asked to do its work again: the number of the generation that it began."""

_SHARD_NAME = re.compile(r"[0-9a-f]{24}(?:-(\d+))?\.parquet")
_SHARDS, _LEAST_ROWS = 64, 8
"""A small data set is cut into this many shards, so that as many cores have work, but not into shards so small that a
task and a file are not worth it."""

_LISTING_THREADS = 8
"""Enough to hide the latency of an object store. Not more, because a thread does not give its memory back."""


def generation_of(shard: str) -> int:
    """The generation of a shard by its name; 0 is the first."""
    match = _SHARD_NAME.fullmatch(shard)
    return int(match[1] or 0) if match else 0


@dataclass(frozen=True)
class ShardPool:
    """The shards in ``storage``; rows follow ``schema``."""

    storage: Storage
    schema: pa.Schema
    read_by_row: bool = True
    """Whether rows are read one by one, and not a whole shard at once."""

    def commit(self, rows: Sequence[dict[str, Any]], *, generation: int = 0) -> int:
        """Writes ``rows`` as one shard of ``generation``, in the order of their keys; returns its size in bytes."""
        # Sorting is stable: rows that share a key, such as the labels of a video, keep their order.
        table = pa.Table.from_pylist(sorted(rows, key=itemgetter("key")), schema=self.schema)
        names = "\n".join(sorted(set(table.column("key").to_pylist())))
        name = hashlib.sha256(names.encode()).hexdigest()[:24]
        suffix = f"-{generation}" if generation else ""
        return self.storage.write_table(
            f"{name}{suffix}.parquet",
            table,
            row_group_size=1 if self.read_by_row else None,
            footer=directory_entry(table),
        )

    @property
    def name(self) -> str:
        """The last part of its address."""
        return last_name(self.storage.uri)

    def newest_generation(self) -> int:
        """The highest generation in the pool."""
        return max(map(generation_of, self.storage.files(suffix=".parquet")), default=0)

    def generations(self, output: Storage, *, forced: bool) -> tuple[int, int]:
        """The oldest generation whose rows count as done, and the one to write.

        A forced run begins a new one. Its number is kept in ``output``, the stage's own folder, so
        that a run which goes on after an interruption knows it, whether it is forced or not.
        """
        newest = self.newest_generation()
        if forced and not output.exists(_GENERATION_FILE):
            output.write_json(_GENERATION_FILE, newest + 1)
        since = int(output.read_json(_GENERATION_FILE)) if output.exists(_GENERATION_FILE) else 0
        # What this run adds to the newest generation counts as new for the forced run that began it, too.
        return since, max(since, newest)

    def index(self, columns: Sequence[str] = (), *, since: int = 0) -> pa.Table:
        """``key``, ``shard``, ``row`` and the given columns of every row from the generation ``since`` on.

        Rows come in the order of the shards' names, whatever the order in which these were written. A key that was made
        twice is there twice; :func:`newest_rows` chooses. A file that is not a whole shard is set aside; its rows then
        count as missing and are made again.
        """
        names = ["key", *columns]
        fields = [*(self.schema.field(name) for name in names), ("shard", pa.string()), ("row", pa.int32())]
        nothing = pa.schema(fields).empty_table()

        def read(shard: str, size: int) -> pa.Table:
            try:
                table = self.read(shard, names, size=size)
            except FileNotFoundError:  # another process has set it aside since the listing
                return nothing
            except DamagedFileError as error:
                self.set_aside(shard, error)
                return nothing
            return table.append_column("shard", pa.array([shard] * len(table), pa.string())).append_column(
                "row", pa.array(range(len(table)), pa.int32())
            )

        listed = self.storage.sizes(suffix=".parquet")
        sizes = {shard: size for shard, size in listed.items() if generation_of(shard) >= since}
        with ThreadPoolExecutor(_LISTING_THREADS) as threads:
            tables = list(threads.map(read, sizes.keys(), sizes.values()))
        return pa.concat_tables([nothing, *tables])

    def read(self, shard: str, names: Sequence[str], *, size: int | None = None) -> pa.Table:
        """Columns of a shard, from its directory where they are there; ``size`` in bytes saves a request.

        Raises:
            FileNotFoundError, StorageError: as :meth:`Storage.read_table`.
            DamagedFileError: it is no shard of this pool, or a damaged one.
        """
        wanted = [self.schema.field(name).type for name in names]
        table = read_directory(self.storage, shard, size)
        if table is not None and set(names) <= set(table.column_names):
            table = table.select(names)
        else:  # an older shard, a bulk column, or damage, which reading the file explains
            table = self.storage.read_table(shard, columns=names)
        if table.schema.types != wanted or table.column("key").null_count:
            raise DamagedFileError(f"{self.storage.place(shard)} has other columns than a shard of this pool")
        return table

    def set_aside(self, shard: str, error: Exception) -> None:
        """Renames a shard that cannot be used, so that its rows count as missing, and says so."""
        try:
            aside = self.storage.set_aside(shard)
        except FileNotFoundError:  # another process was faster
            return
        logger.warning("%s; it is set aside as %s, and its rows are made again", error, aside)

    def lost(self, index: pa.Table) -> list[str]:
        """The shards that ``index`` points into and that no longer exist, by name."""
        return sorted(set(index.column("shard").unique().to_pylist()) - set(self.storage.files(suffix=".parquet")))

    def describe_loss(self, output: Storage) -> str | None:
        """What is missing of the artifact in ``output`` whose index points into this pool; None = nothing."""
        if not output.exists(INDEX_FILE):
            return f"its {INDEX_FILE} is missing"
        lost = self.lost(output.read_table(INDEX_FILE, columns=["shard"]))
        return f"{len(lost):,} of its shards are missing" if lost else None


def newest_rows(index: pa.Table) -> pa.Table:
    """The rows of every key from one shard alone, in the order of ``index``.

    The newest generation counts. Within it a good row is preferred to one with an ``error_reason``, because a video may
    have been tried again.
    """
    shards = index.column("shard").combine_chunks().dictionary_encode()
    generations = np.array([generation_of(name) for name in shards.dictionary.to_pylist()], dtype=np.int64)
    place = shards.indices.to_numpy()
    failed = np.zeros(len(index), dtype=np.int64)
    if "error_reason" in index.column_names:
        failed += pc.is_valid(index.column("error_reason")).to_numpy()
    # The smallest rank wins: the newest generation first, within it a row without an error, then the shard's name.
    # A generation weighs twice as much as an error, and both more than any place among the shards.
    rank = pa.array((failed - 2 * generations[place]) * max(len(generations), 1) + place)
    best = pa.table({"key": index.column("key"), "rank": rank}).group_by("key").aggregate([("rank", "min")])
    best_of_row = best.column("rank_min").take(pc.index_in(index.column("key"), best.column("key")))
    return index.filter(pc.equal(best_of_row, rank))


def shard_size(rows: int, most: int) -> int:
    """How many of ``rows`` a shard holds: ``most``, or fewer where a small data set would leave cores without work.

    It does not depend on how many cores there are, so that shards are the same on every cluster.
    """
    return min(most, max(_LEAST_ROWS, rows // _SHARDS))


def split_shards(table: pa.Table, size: int) -> list[pa.Table]:
    """``table`` in pieces of ``size`` rows.

    Finished pieces of an interrupted run are whole pieces, so cutting what is left gives the
    same pieces, and the same files, as an uninterrupted run.
    """
    return [table.slice(start, size) for start in range(0, len(table), size)]
