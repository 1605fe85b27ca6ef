"""Random access to the rows of keyed shards: what every store of frames or features shares.

A small number of files is kept open. A row is found by its key, so a shard that was made again never gives
another video's row. Bytes that have changed since they were written are noticed by their checksum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.workspace.errors import UNREADABLE, DamagedFileError, StorageError
from pipelines.workspace.shard_files import OpenShard
from pipelines.workspace.shards import ShardPool

_OPEN_SHARDS = 64


class LostRowsError(ValueError):
    """Stored rows are missing or damaged; the message names the shard and what to do."""


class ShardRows:
    """Reads rows of a pool.

    Args:
        pool: the shards.
        index: table with ``key``, ``shard`` and ``row`` of the rows, which are addressed by their position in it.
        stage: name of the stage that wrote the shards, for messages.
    """

    def __init__(self, pool: ShardPool, index: pa.Table, *, stage: str) -> None:
        self.pool = pool
        self._shards: list[str] = index.column("shard").to_pylist()
        self._rows: list[int] = index.column("row").to_pylist()
        self._keys: list[str] = index.column("key").to_pylist()
        self._stage = stage
        self._files: OrderedDict[str, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind when this travels to another process.
        return {**self.__dict__, "_files": OrderedDict()}

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of the rows at ``positions``, in their order, as the pool's schema has them.

        Raises:
            LostRowsError: a shard is missing or damaged; a damaged one is set aside.
            StorageError: the storage cannot be read.
        """
        schema = pa.schema([self.pool.schema.field(name) for name in columns])
        by_shard: dict[str, list[int]] = {}
        for place, position in enumerate(positions):
            by_shard.setdefault(self._shards[position], []).append(place)
        tables = [schema.empty_table()]
        for shard, places in by_shard.items():
            mine = [positions[place] for place in places]
            tables.append(self._read(shard, mine, schema))
        if len(by_shard) <= 1:
            return tables[-1]
        order = [0] * len(positions)
        for found, place in enumerate(place for places in by_shard.values() for place in places):
            order[place] = found
        return pa.concat_tables(tables).take(pa.array(order, pa.int64()))

    def _read(self, shard: str, positions: Sequence[int], schema: pa.Schema) -> pa.Table:
        try:
            keys, rows = [self._keys[position] for position in positions], [self._rows[place] for place in positions]
            return self._open(shard).read(keys, rows, schema.names).cast(schema)
        except FileNotFoundError:
            raise self._missing(shard) from None
        except (*UNREADABLE, LookupError) as error:
            raise self._explained(shard, error) from error

    def _open(self, shard: str) -> OpenShard:
        file = self._files.get(shard)
        if file is None:
            file = OpenShard(self.pool.storage, shard)
            self._files[shard] = file
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        return file

    def _explained(self, shard: str, error: Exception) -> Exception:
        """What to raise where reading a shard failed; one that is damaged is set aside."""
        self._files.pop(shard, None)
        try:
            self.pool.storage.require_whole_table(shard)
        except FileNotFoundError:
            return self._missing(shard)
        except DamagedFileError as damage:
            self.pool.set_aside(shard, damage)
            return LostRowsError(f"{damage}. It is set aside. {self._mend}")
        if isinstance(error, OSError):
            return StorageError(f"cannot read {self.pool.storage.place(shard)}: {error}")
        return self._foreign(shard, str(error) if isinstance(error, DamagedFileError) else "it has other rows")

    def foreign(self, position: int, reason: str) -> Exception:
        """What to raise about a row that the stage did not write; its shard is set aside."""
        return self._foreign(self._shards[position], reason)

    def _missing(self, shard: str) -> LostRowsError:
        storage = self.pool.storage
        # Of several readers of a damaged shard, one sets it aside.
        fate = "was damaged, and is set aside" if storage.was_set_aside(shard) else "is missing"
        return LostRowsError(f"{storage.place(shard)} {fate}. {self._mend}")

    def _foreign(self, shard: str, reason: str) -> LostRowsError:
        message = f"{self.pool.storage.place(shard)} is not what the {self._stage} stage wrote: {reason}"
        self.pool.set_aside(shard, LostRowsError(message))
        return LostRowsError(f"{message}. It is set aside. {self._mend}")

    @property
    def _mend(self) -> str:
        return f"Run the same command again: the {self._stage} of its videos, and of no others, are made anew"
