"""Tables as Parquet files: how this project writes them, and reads them with their checksums compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table, *, row_group_size: int | None, footer: Mapping[str, str] | None) -> pa.Buffer:
    """The bytes of the Parquet file of ``table``, with checksums of its pages.

    ``row_group_size`` 1 makes every row readable at random. ``footer`` holds texts that lie beside the table.
    """
    sink = pa.BufferOutputStream()
    # Frames are compressed already; compressing them again costs time and saves nothing. Statistics hold the smallest
    # and the largest value of a column, here two images of a video once more: up to half of the file.
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        if footer:
            writer.add_key_value_metadata(dict(footer))
    return sink.getvalue()


def read_parquet(source: Any, *, columns: list[str] | None = None) -> pa.Table:
    """The table in an open Parquet file, in one piece, its pages compared with their checksums.

    ``pyarrow.parquet.read_table`` would scan it as a data set, with a task and buffers that stay allocated for every
    row group. A shard has a row group for each row.

    Raises:
        ValueError: a column is not there.
        OSError, pyarrow.ArrowException: it is no Parquet file, or a damaged one.
    """
    # pre_buffer joins the reads of neighbouring columns, so that a store gets fewer requests.
    with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file:
        if absent := set(columns or ()) - set(file.schema_arrow.names):
            raise ValueError(f"it has no column {', '.join(sorted(absent))}")
        table = file.read(columns=columns, use_threads=False)
    return (table if columns is None else table.select(columns)).combine_chunks()
