"""The file of a shard: its directory in the footer, and rows that are found by their keys.

The footer of a Parquet file can hold texts of the writer's own. A shard's footer holds its *directory*: a checksum and,
in base64, a small Parquet table with the columns of the shard that are not bulk. So one request to an object store
tells what a shard holds, however many rows it has. Reading the key column itself would take a request for each row,
because every row is a row group of its own.

Shards that were written before there were directories have none. They are read row by row.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.workspace.errors import UNREADABLE, DamagedFileError
from pipelines.workspace.parquet import read_parquet
from pipelines.workspace.records import is_bulk
from pipelines.workspace.storage import Storage

_DIRECTORY = "hbi.directory"
_CHECKSUM_DIGITS = 8


def directory_entry(table: pa.Table) -> dict[str, str]:
    """What goes into the footer of the shard that holds ``table``."""
    listed = table.select([field.name for field in table.schema if not is_bulk(field)])
    sink = pa.BufferOutputStream()
    pq.write_table(listed, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    content = sink.getvalue().to_pybytes()
    # A checksum of its own, because those of Parquet cover pages and not the footer.
    return {_DIRECTORY: f"{zlib.crc32(content):0{_CHECKSUM_DIGITS}x}{base64.b64encode(content).decode()}"}


def directory_of(footer: pq.FileMetaData) -> pa.Table | None:
    """The directory in the ``footer`` of a shard; None if it is missing or was changed."""
    entry = (footer.metadata or {}).get(_DIRECTORY.encode())
    if entry is None:
        return None
    try:
        content = base64.b64decode(entry[_CHECKSUM_DIGITS:], validate=True)
        if int(entry[:_CHECKSUM_DIGITS], 16) != zlib.crc32(content):
            return None
        directory = read_parquet(pa.BufferReader(content))
    except (*UNREADABLE, binascii.Error):
        return None
    return directory if len(directory) == footer.num_rows else None


def read_directory(storage: Storage, shard: str, size: int | None = None) -> pa.Table | None:
    """The directory of a shard of ``size`` bytes; None if there is no usable one.

    For an object this takes one request, or two if the footer is larger than 64 KB, and one more without the size.

    Raises:
        FileNotFoundError: the shard is not there.
    """
    import pyarrow.dataset as ds  # loads pandas, half a second

    # A fragment can be given the size, which is known from the listing. Opening a file would request it.
    fragment = ds.ParquetFileFormat().make_fragment(storage.path(shard), storage.filesystem, file_size=size)
    try:
        return directory_of(fragment.metadata)
    except FileNotFoundError:
        raise
    except UNREADABLE:
        # The caller then reads the columns, which tells a damaged file from a store that is away.
        return None


class OpenShard:
    """A shard that is open for reading rows at random, by several threads at once.

    Raises:
        FileNotFoundError: there is no such shard.
        OSError, ValueError, pyarrow.ArrowException: it is no Parquet file, or cannot be read.
    """

    def __init__(self, storage: Storage, shard: str) -> None:
        self._source = storage.filesystem.open_input_file(storage.path(shard))
        self._footer = pq.ParquetFile(self._source).metadata
        directory = directory_of(self._footer)
        self._rows: Mapping[str, int] | None = None
        if directory is not None:
            self._rows = {key: row for row, key in enumerate(directory.column("key").to_pylist())}

    def read(self, keys: Sequence[str], rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows of ``keys``, in their order.

        Args:
            keys: of the wanted rows.
            rows: their places according to an index. A shard that is made again may hold them in another order, so the
                key decides.
            columns: which columns.

        Raises:
            DamagedFileError: the shard does not hold a key, or, where it has no directory, not at its row.
            OSError, ValueError, pyarrow.ArrowException: it cannot be read.
        """
        # A reader serves one thread; the file and its footer serve all.
        file = pq.ParquetFile(self._source, metadata=self._footer, page_checksum_verification=True)
        if self._rows is not None:
            if absent := [key for key in keys if key not in self._rows]:
                raise DamagedFileError(f"it has no row with the key {absent[0]}, although its index lists it")
            # Every row is a row group, so its number is that of its group.
            places = [self._rows[key] for key in keys]
            table = file.read_row_groups(places, columns=list(columns), use_threads=False)
            # The numbers of rows in the footer have no checksum.
            if len(table) != len(keys):
                raise DamagedFileError(f"it holds {len(table)} rows where its directory lists {len(keys)}")
            return table
        table = file.read_row_groups(list(rows), columns=["key", *columns], use_threads=False)
        for key, row, found in zip(keys, rows, table.column("key").to_pylist(), strict=True):
            if found != key:
                raise DamagedFileError(f"its row {row} has the key {found}, and its index says {key}")
        return table.select(list(columns))
