"""Keyed shards: how a stage over videos does only what is missing, and loses one shard at most.

A pool is a folder of Parquet files. Every row has a ``key``, a digest of what it was made from.
A shard is written in one commit under a name made from its keys, so a task that runs twice
writes the same file twice. The pool of a stage is named by the stage's settings alone: new
videos in the manifest find the work on the old ones done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.storage import Storage

SUMMARY = pa.schema([("rows", pa.int64()), ("errors", pa.int64()), ("units", pa.int64()), ("bytes", pa.int64())])
"""What a task that wrote a shard tells the driver; ``units`` counts frames or pairs."""

_LISTING_THREADS = 16


@dataclass(frozen=True)
class ShardPool:
    """The shards in ``storage``; rows follow ``schema`` and are readable one by one."""

    storage: Storage
    schema: pa.Schema

    def commit(self, rows: Sequence[dict[str, Any]]) -> int:
        """Writes ``rows`` as one shard; returns its size in bytes."""
        table = pa.Table.from_pylist(list(rows), schema=self.schema)
        names = "\n".join(sorted(set(table.column("key").to_pylist())))
        name = hashlib.sha256(names.encode()).hexdigest()[:24]
        return self.storage.write_table(f"{name}.parquet", table, row_group_size=1)

    def index(self, columns: Sequence[str] = ()) -> pa.Table:
        """``key``, ``shard``, ``row`` and the given columns of every row in the pool.

        Rows come in the order of the shards' names, whatever the order in which these were
        written. A key that was made twice is there twice.
        """
        names = ["key", *columns]

        def read(shard: str) -> pa.Table:
            table = self.storage.read_table(shard, columns=names)
            return table.append_column("shard", pa.array([shard] * len(table), pa.string())).append_column(
                "row", pa.array(range(len(table)), pa.int32())
            )

        with ThreadPoolExecutor(_LISTING_THREADS) as threads:
            tables = list(threads.map(read, self.storage.files(suffix=".parquet")))
        fields = [*(self.schema.field(name) for name in names), ("shard", pa.string()), ("row", pa.int32())]
        return pa.concat_tables([pa.schema(fields).empty_table(), *tables])


def split_shards(table: pa.Table, size: int) -> list[pa.Table]:
    """``table`` in pieces of ``size`` rows.

    Finished pieces of an interrupted run are whole pieces, so cutting what is left gives the
    same pieces, and the same files, as an uninterrupted run.
    """
    return [table.slice(start, size) for start in range(0, len(table), size)]


def map_shards(
    shards: Sequence[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    *,
    constructor: dict[str, Any] | None = None,
    actors: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Runs ``work`` on every shard with Ray Data and yields its summary rows as they come.

    Args:
        shards: one block of rows each; a block is one call of ``work``.
        work: a function (run as tasks) or a class whose instances are callable (an actor pool).
        constructor: keyword arguments of the class.
        actors: most actors at once.
        cpus: CPUs of a task or actor.
        gpus: GPUs of a task or actor.
    """
    if not shards:
        return
    import ray.data

    options: dict[str, Any] = {"num_cpus": cpus, "batch_size": None, "batch_format": "pyarrow"}
    if gpus:
        options["num_gpus"] = gpus
    if isinstance(work, type):
        options["fn_constructor_kwargs"] = constructor or {}
        options["compute"] = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors or 1, len(shards))))
    summaries = ray.data.from_arrow(list(shards)).map_batches(work, **options)
    yield from summaries.iter_rows()
