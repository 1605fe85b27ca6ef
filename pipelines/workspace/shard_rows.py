"""Random access to the rows of keyed shards: what every store of frames or features shares.

Open files are kept, up to a number. A row is found by its key, so a shard that was made again never gives another
video's row. Bytes that have changed since they were written are noticed by their checksum. Several threads may read
at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import pyarrow as pa

from pipelines.workspace.errors import UNREADABLE, DamagedFileError, StorageError
from pipelines.workspace.file_systems import read_patiently
from pipelines.workspace.shard_files import OpenShard
from pipelines.workspace.shards import ShardPool

_OPEN_SHARDS = 512
"""Few data sets have more; opening one again costs requests to the storage."""
_READERS = 32
"""Reads at once: a reader waits for the storage, and takes no processor meanwhile."""

Read = TypeVar("Read")


class LostRowsError(ValueError):
    """Stored rows are missing or damaged; the message names the shard and what to do."""

    shard = ""
    """File of the shard in its pool."""


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
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._reasons: dict[str, str] = {}
        """Why shards were set aside, until it is said."""

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay behind when this travels to another process.
        gone: dict[str, Any] = {"_files": OrderedDict(), "_locks": {}}
        return {name: value for name, value in (self.__dict__ | gone).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of the rows at ``positions``, in their order, as the pool's schema has them.

        Several threads may read at once; whoever takes their results does so within :meth:`explaining`.

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
        # The tables hold the rows shard by shard; ``order`` says where the row of each position lies among them.
        order = [0] * len(positions)
        for found, place in enumerate(place for places in by_shard.values() for place in places):
            order[place] = found
        return pa.concat_tables(tables).take(pa.array(order, pa.int64()))

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Completes the error of a lost shard with the reason, which only one of the reading threads has found."""
        try:
            yield
        except LostRowsError as error:
            raise _lost(error.shard, self._reasons.pop(error.shard, str(error))) from error

    def _read(self, shard: str, positions: Sequence[int], schema: pa.Schema) -> pa.Table:
        try:
            keys, rows = [self._keys[position] for position in positions], [self._rows[place] for place in positions]
            table = read_patiently(lambda: self._open(shard).read(keys, rows, schema.names))
            return table.cast(schema)
        except FileNotFoundError:
            raise self._missing(shard) from None
        # LookupError: the file of another program, without the column of keys.
        except (*UNREADABLE, LookupError) as error:
            raise self._explained(shard, error) from error

    def _open(self, shard: str) -> OpenShard:
        # Others may read meanwhile, and open other shards.
        with self._lock_of(shard):
            file = self._files.get(shard)
            if file is None:
                file = OpenShard(self.pool.storage, shard)
                with self._lock:
                    self._files[shard] = file
                    if len(self._files) > _OPEN_SHARDS:
                        # Whoever reads from it meanwhile still holds it.
                        self._files.popitem(last=False)
        return file

    def _lock_of(self, shard: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(shard, threading.Lock())

    def _explained(self, shard: str, error: Exception) -> Exception:
        """What to raise where reading a shard failed; one that is damaged is set aside, by one of the threads."""
        with self._lock_of(shard):
            return self._looked_at(shard, error)

    def _looked_at(self, shard: str, error: Exception) -> Exception:
        # The open file may be one that was replaced since; the next read opens the file of now.
        self._files.pop(shard, None)
        try:
            self.pool.storage.require_whole_table(shard)
        except FileNotFoundError:
            return self._missing(shard)
        except DamagedFileError as damage:
            self.pool.set_aside(shard, damage)
            return self._reasoned(_lost(shard, f"{damage}. It is set aside. {self._mend}"))
        if isinstance(error, OSError):
            return StorageError(f"cannot read {self.pool.storage.place(shard)}: {error}")
        reason = str(error) if isinstance(error, DamagedFileError) else "it has other rows"
        return self._reasoned(self._foreign(shard, reason))

    def _reasoned(self, error: LostRowsError) -> LostRowsError:
        self._reasons[error.shard] = str(error)
        return error

    def foreign(self, position: int, reason: str) -> Exception:
        """What to raise about a row that the stage did not write; its shard is set aside."""
        return self._foreign(self._shards[position], reason)

    def _missing(self, shard: str) -> LostRowsError:
        storage = self.pool.storage
        # If several readers meet a damaged shard, only one of them sets it aside.
        fate = "was damaged, and is set aside" if storage.was_set_aside(shard) else "is missing"
        return _lost(shard, f"{storage.place(shard)} {fate}. {self._mend}")

    def _foreign(self, shard: str, reason: str) -> LostRowsError:
        """What to raise about a whole file that the stage did not write; it is set aside."""
        message = f"{self.pool.storage.place(shard)} is not what the {self._stage} stage wrote: {reason}"
        self.pool.set_aside(shard, LostRowsError(message))
        return _lost(shard, f"{message}. It is set aside. {self._mend}")

    @property
    def _mend(self) -> str:
        return f"Run the same command again: the {self._stage} of its videos, and of no others, are made anew"


def _lost(shard: str, message: str) -> LostRowsError:
    error = LostRowsError(message)
    error.shard = shard
    return error


class ReadAhead(Generic[Read]):
    """Reads that are begun before their results are needed, several beside each other.

    Reads that were begun do not travel to another process.
    """

    def __init__(self) -> None:
        self._readers: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[Read]] = {}

    def __reduce__(self) -> tuple[type[ReadAhead[Read]], tuple[()]]:
        return type(self), ()

    def begin(self, positions: Iterable[int], read: Callable[[int], Read]) -> None:
        """Begins to read the rows at ``positions``, unless that is begun."""
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="shard-reader")
        for position in positions:
            if position not in self._begun:
                self._begun[position] = self._readers.submit(read, position)

    def take(self, positions: Iterable[int], read: Callable[[int], Read]) -> dict[int, Future[Read]]:
        """The reads of the rows at ``positions``, begun now where they were not before."""
        distinct = set(positions)
        self.begin(distinct, read)
        return {position: self._begun.pop(position) for position in distinct}
