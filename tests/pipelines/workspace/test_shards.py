from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe.resources import TaskResources
from pipelines.resources.sharded_work import map_shards
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import FEATURES, FRAMES, LABELS
from pipelines.workspace.shard_files import OpenShard, directory_entry, directory_of, read_directory
from pipelines.workspace.shards import ShardPool, generation_of, newest_rows, shard_size, split_shards
from pipelines.workspace.storage import Storage

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), ("frames", pa.list_(pa.binary()))])


@pytest.fixture
def pool(tmp_path: Path) -> ShardPool:
    return ShardPool(Storage(str(tmp_path)), SCHEMA)


def rows(*keys: str) -> list[dict[str, Any]]:
    return [{"key": key, "frames": [key.encode()]} for key in keys]


def test_the_same_rows_make_the_same_file(pool: ShardPool) -> None:
    for keys in ("ab", "ab", "ba"):
        pool.commit(rows(*keys))
    assert len(pool.storage.files()) == 1
    pool.commit(rows("a", "c"))
    assert len(pool.storage.files()) == 2


def test_options_of_a_store_are_no_part_of_the_name() -> None:
    workspace = Storage("s3://bucket/ws?region=x&endpoint_override=http://h:1/a")
    assert ShardPool(workspace.folder("shards", "frames-1"), SCHEMA).name == "frames-1"


def test_the_index_finds_every_row(pool: ShardPool) -> None:
    assert len(pool.index()) == 0
    pool.commit(rows("a", "b", "c"))
    pool.commit(rows("d", "e"))
    found = {
        row["key"]: pool.storage.read_table(row["shard"]).slice(row["row"], 1).to_pylist()
        for row in pool.index().to_pylist()
    }
    assert found == {key: rows(key) for key in "abcde"}


def test_the_index_does_not_depend_on_the_order_of_the_commits(tmp_path: Path) -> None:
    pieces = [rows("a", "b"), rows("c"), rows("d", "e")]
    indexes = []
    for name, order in (("one", pieces), ("other", pieces[::-1])):
        pool = ShardPool(Storage(str(tmp_path / name)), SCHEMA)
        for piece in order:
            pool.commit(piece)
        indexes.append(pool.index())
    assert indexes[0] == indexes[1]


def test_rows_made_anew_stand_beside_the_old_ones_and_come_first(pool: ShardPool, tmp_path: Path) -> None:
    output = Storage(str(tmp_path / "artifact"))
    pool.commit(rows("a", "b", "b"))
    pool.commit(rows("c"))
    old = pool.storage.files()
    assert pool.generations(output, forced=False) == (0, 0)
    assert pool.generations(output, forced=True) == (1, 1)
    pool.commit(rows("a", "b"), generation=1)
    # The run goes on with the number that it began, forced or not.
    assert pool.generations(output, forced=True) == pool.generations(output, forced=False) == (1, 1)
    assert set(old) < set(pool.storage.files())
    assert pool.index(since=1).column("key").to_pylist() == ["a", "b"]
    found = newest_rows(pool.index()).to_pylist()
    assert sorted((row["key"], generation_of(row["shard"])) for row in found) == [("a", 1), ("b", 1), ("c", 0)]
    # What another run adds counts as new, too; the next forced one begins another generation.
    other = Storage(str(tmp_path / "other"))
    assert pool.generations(other, forced=False) == (0, 1)
    assert pool.generations(other, forced=True) == (2, 2)


def test_all_rows_of_a_key_come_from_one_shard(pool: ShardPool) -> None:
    assert len(newest_rows(pool.index())) == 0
    pool.commit(rows("a", "a", "b"))
    pool.commit(rows("a", "a", "c"))
    found = newest_rows(pool.index()).to_pylist()
    assert [row["key"] for row in found].count("a") == 2
    assert len({row["shard"] for row in found if row["key"] == "a"}) == 1


def test_a_good_row_counts_rather_than_an_error_of_the_same_generation(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("key", pa.string(), nullable=False), ("error_reason", pa.string())])
    pool = ShardPool(Storage(str(tmp_path)), schema)
    good, bad = {"key": "a", "error_reason": None}, {"key": "a", "error_reason": "timeout"}
    for others in ("bc", "de"):
        pool.commit([bad, {"key": others[0]}])
        pool.commit([good, {"key": others[1]}])
    (chosen,) = [row for row in newest_rows(pool.index(["error_reason"])).to_pylist() if row["key"] == "a"]
    assert chosen["error_reason"] is None
    pool.commit([bad], generation=1)
    (chosen,) = [row for row in newest_rows(pool.index(["error_reason"])).to_pylist() if row["key"] == "a"]
    assert chosen["error_reason"] == "timeout"


def test_half_a_shard_is_not_in_the_index(pool: ShardPool, tmp_path: Path) -> None:
    pool.commit(rows("a"))
    (tmp_path / ".tmp-1234-b.parquet").write_bytes(b"PAR1 and nothing else")
    assert pool.index().column("key").to_pylist() == ["a"]


def test_every_row_is_readable_alone(pool: ShardPool) -> None:
    pool.commit(rows("a", "b", "c"))
    file = pq.ParquetFile(pool.storage.path(pool.storage.files()[0]))
    assert file.num_row_groups == 3
    assert file.read_row_group(2).to_pylist() == rows("c")


def test_rows_that_do_not_fit_the_schema_are_refused(pool: ShardPool) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        pool.commit([{"key": "a", "frames": 3}])


@pytest.mark.parametrize(
    ("rows", "most", "size"), [(0, 64, 8), (60, 64, 8), (1000, 64, 15), (10_000, 64, 64), (10_000, 4, 4)]
)
def test_a_small_data_set_is_cut_into_many_shards(rows: int, most: int, size: int) -> None:
    assert shard_size(rows, most) == size


@given(count=st.integers(0, 50), size=st.integers(1, 8), data=st.data())
def test_an_interrupted_run_goes_on_with_the_same_pieces(count: int, size: int, data: st.DataObject) -> None:
    table = pa.table({"key": pa.array([str(i) for i in range(count)], pa.string())})
    pieces = [piece.column("key").to_pylist() for piece in split_shards(table, size)]
    assert [key for piece in pieces for key in piece] == table.column("key").to_pylist()
    finished = data.draw(st.sets(st.integers(0, max(len(pieces) - 1, 0)))) if pieces else set()
    done = {key for piece in finished for key in pieces[piece]}
    left = pa.table({"key": pa.array([key for key in table.column("key").to_pylist() if key not in done], pa.string())})
    assert [piece.column("key").to_pylist() for piece in split_shards(left, size)] == [
        piece for number, piece in enumerate(pieces) if number not in finished
    ]


def test_nothing_to_do_needs_no_cluster() -> None:
    assert list(map_shards([], lambda table: table, name="nothing", resources=TaskResources())) == []


def test_rows_lie_in_the_order_of_their_keys(tmp_path: Path) -> None:
    files = []
    for order in ("abc", "cab"):
        pool = ShardPool(Storage(str(tmp_path / order)), SCHEMA)
        pool.commit(rows(*order))
        assert pool.index().column("key").to_pylist() == ["a", "b", "c"]
        files.append(pool.storage.read_bytes(*pool.storage.files()))
    assert files[0] == files[1], "a shard that is made again is the same file"


def test_rows_of_one_key_stay_in_their_order(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("key", pa.string(), nullable=False), ("caption_index", pa.int32())])
    pool = ShardPool(Storage(str(tmp_path)), schema, read_by_row=False)
    pool.commit([{"key": key, "caption_index": number} for key in "ba" for number in range(3)])
    index = pool.index(["caption_index"])
    assert index.column("key").to_pylist() == [*"aaabbb"]
    assert index.column("caption_index").to_pylist() == [0, 1, 2, 0, 1, 2]
    (shard,) = pool.storage.files()
    assert pq.ParquetFile(pool.storage.path(shard)).num_row_groups == 1


def without_directory(pool: ShardPool, *keys: str) -> str:
    """Writes a shard as they were before they had directories, its rows in the given order; its name."""
    pool.commit(rows(*keys))
    (name,) = (row["shard"] for row in pool.index().to_pylist() if row["key"] == keys[0])
    pool.storage.write_table(name, pa.Table.from_pylist(rows(*keys), schema=pool.schema), row_group_size=1)
    return name


def test_a_shard_without_a_directory_is_read_row_by_row(pool: ShardPool) -> None:
    name = without_directory(pool, "b", "a")
    assert read_directory(pool.storage, name) is None
    found = pool.index().to_pylist()
    assert [(row["key"], row["row"]) for row in found] == [("b", 0), ("a", 1)]
    shard = OpenShard(pool.storage, name)
    assert shard.read(["a"], [1], ["frames"]).to_pylist() == [{"frames": [b"a"]}]
    with pytest.raises(DamagedFileError, match="its row 0 has the key b, and its index says a"):
        shard.read(["a"], [0], ["frames"])


def test_the_directory_holds_all_but_the_bulk(tmp_path: Path) -> None:
    for schema, bulk in (
        (FRAMES, {"frames", "frame_index"}),
        (LABELS, {"similarity", "word_logits", "frame_logits", "interaction"}),
        (FEATURES, {"tokens", "features", "logits"}),
    ):
        entry = directory_entry(schema.empty_table())
        table = schema.empty_table()
        pq.write_table(table.replace_schema_metadata(entry), tmp_path / "shard.parquet")
        found = directory_of(pq.read_metadata(tmp_path / "shard.parquet"))
        assert found is not None and set(schema.names) - set(found.column_names) == bulk


def test_rows_are_found_by_their_key_wherever_the_index_saw_them(pool: ShardPool) -> None:
    pool.commit(rows("a", "b", "c"))
    shard = OpenShard(pool.storage, *pool.storage.files())
    found = shard.read(["c", "a"], [0, 2], ["frames"]).to_pylist()
    assert found == [{"frames": [b"c"]}, {"frames": [b"a"]}]
    with pytest.raises(DamagedFileError, match="no row with the key d"):
        shard.read(["d"], [0], ["frames"])


@pytest.mark.parametrize("place", ["checksum", "content"])
def test_a_directory_that_was_changed_is_not_believed(pool: ShardPool, place: str) -> None:
    pool.commit(rows("a", "b"))
    (name,) = pool.storage.files()
    content = bytearray(pool.storage.read_bytes(name))
    start = content.index(b"hbi.directory") + len(b"hbi.directory") + 3
    content[start + {"checksum": 2, "content": 60}[place]] ^= 1
    pool.storage.write_bytes(name, bytes(content))
    assert read_directory(pool.storage, name) is None
    assert pool.index().column("key").to_pylist() == ["a", "b"], "the columns are whole"
