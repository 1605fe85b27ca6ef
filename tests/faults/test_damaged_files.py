"""What lies between the stages is cut off, changed, missing or somebody else's."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.search.features import FeatureStore
from pipelines.stages.execution import execute_step
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.train.batches import load_ahead
from pipelines.video.frame_store import FrameStore, decode_images
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.errors import DamagedFileError, StorageError
from pipelines.workspace.records import FEATURES, FRAMES, INDEX_FILE, LABELS
from pipelines.workspace.shard_rows import LostRowsError
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.faults.flaky_s3 import FlakyS3
from tests.tiny_estimator import estimator_task, write_labels

pytestmark = pytest.mark.fault


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rows(*keys: str) -> list[dict[str, Any]]:
    return [
        {"video_id": key, "key": key, "frames": [jpeg(ord(key))], "frame_index": [0], "time_s": [0.0]} for key in keys
    ]


@pytest.fixture
def pool(tmp_path: Path) -> ShardPool:
    pool = ShardPool(Storage(str(tmp_path / "pool")), FRAMES)
    for keys in ("abc", "de"):
        pool.commit(rows(*keys))
    return pool


def shard_of(pool: ShardPool, key: str) -> Path:
    """The file with the row of ``key``."""
    (shard,) = (row["shard"] for row in pool.index().to_pylist() if row["key"] == key)
    return Path(pool.storage.path(shard))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("these are no frames\n" * 50)


def lose_the_footer(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes(192) + content[-8:])


def replace_by_another_table(path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"]}), path)


def replace_by_other_types(path: Path) -> None:
    pq.write_table(pa.table({"key": [1, 2, 3], "frames": [1, 2, 3]}), path)


def flip_a_bit_of_a_frame(path: Path) -> None:
    content = bytearray(path.read_bytes())
    assert content.count(jpeg(ord("a"))) == 1, "too large to be in the statistics, too"
    content[content.index(jpeg(ord("a"))) + 100] ^= 1
    path.write_bytes(content)


DAMAGES = [cut_off, empty, replace_by_text, lose_the_footer, replace_by_another_table, replace_by_other_types]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_set_aside_said_once_and_made_again(
    pool: ShardPool, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, path = pool.index(), shard_of(pool, "a")
    damage(path)
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert pool.index().column("key").to_pylist() == ["d", "e"]
        assert pool.index().column("key").to_pylist() == ["d", "e"]
    (message,) = caplog.messages
    assert str(path) in message and "its rows are made again" in message
    assert path.with_name(f"{path.name}.damaged").read_bytes() == content, "nothing is deleted"
    assert pool.lost(whole) == [path.name]
    pool.commit(rows("a", "b", "c"))
    assert pool.index() == whole
    assert pool.lost(whole) == []


def test_a_missing_shard_is_made_again(pool: ShardPool) -> None:
    whole, path = pool.index(), shard_of(pool, "d")
    path.unlink()
    assert pool.lost(whole) == [path.name]
    assert pool.index().column("key").to_pylist() == ["a", "b", "c"]


def test_other_files_in_a_pool_are_left_alone(pool: ShardPool) -> None:
    Path(pool.storage.path("notes.txt")).write_text("mine")
    Path(pool.storage.path("folder.parquet")).mkdir()
    assert len(pool.index()) == 5
    assert set(pool.storage.files()) > {"notes.txt"}


def test_a_store_that_is_away_damages_no_shard(s3: FlakyS3, bucket: Storage, impatient: None) -> None:
    pool = ShardPool(bucket, FRAMES)
    pool.commit(rows("a", "b"))
    s3.refuse(1000, strikes=lambda request: request.method == "GET" and "list-type" not in request.path)
    with pytest.raises(StorageError, match="cannot read"):
        pool.index()
    s3.heal()
    assert pool.index().column("key").to_pylist() == ["a", "b"]


def test_a_shard_in_a_bucket_is_set_aside_too(bucket: Storage) -> None:
    pool = ShardPool(bucket, FRAMES)
    pool.commit(rows("a", "b"))
    (name,) = bucket.files()
    bucket.write_bytes(name, bucket.read_bytes(name)[:300])
    assert len(pool.index()) == 0
    assert bucket.files() == [f"{name}.damaged"]


@pytest.mark.parametrize("damage", [*DAMAGES, flip_a_bit_of_a_frame])
def test_damage_that_training_finds_names_the_shard_and_how_it_is_mended(pool: ShardPool, damage: Any) -> None:
    index = pool.index(["video_id"]).sort_by("video_id")
    store, path = FrameStore(pool.storage, index), shard_of(pool, "a")
    damage(path)
    with pytest.raises(LostRowsError, match=rf"{path}.*set aside\. Run the same command again"):
        store.batch([0, 3], image_size_px=32, max_frames=1)
    assert pool.lost(index) == [path.name], "so that the plan of the next run sees it"
    assert store.decoded(3)[0].shape == (3, 64, 64), "the others can be read"
    with pytest.raises(LostRowsError, match=rf"{path} was damaged, and is set aside\. Run the same command again"):
        store.encoded(1)


def written_before_directories(pool: ShardPool, name: str, *keys: str) -> None:
    """A shard as they were once: without a directory, its rows in the order in which they were made."""
    pool.storage.write_table(name, pa.Table.from_pylist(rows(*keys), schema=FRAMES), row_group_size=1)


def test_a_shard_that_was_made_again_in_another_order_gives_every_video_its_own_frames(pool: ShardPool) -> None:
    index = pool.index(["video_id"])
    name = shard_of(pool, "a").name
    for keys in ("abc", "cba"):
        # What an index says that was made of an older shard, with its rows in another order.
        written_before_directories(pool, name, *keys)
        stale = pool.index(["video_id"]).sort_by("video_id")
        pool.storage.delete(name)
        pool.commit(rows(*"bca"))
        store = FrameStore(pool.storage, stale)
        assert [store.encoded(video) for video in range(3)] == [[jpeg(ord(key))] for key in "abc"]
    assert pool.index(["video_id"]) == index


def test_frames_of_another_video_are_refused_where_a_shard_has_no_directory(pool: ShardPool) -> None:
    index = pool.index(["video_id"]).sort_by("video_id")
    path = shard_of(pool, "a")
    written_before_directories(pool, path.name, "c", "b", "a")
    store = FrameStore(pool.storage, index)
    with pytest.raises(LostRowsError, match=r"its row 0 has the key c, and its index says a.*set aside\. Run the"):
        store.encoded(0)
    assert pool.lost(index) == [path.name], "so that the plan of the next run sees it"
    pool.commit(rows("a", "b", "c"))
    assert FrameStore(pool.storage, index).encoded(0) == [jpeg(ord("a"))]


def test_labels_belong_to_their_pair_whatever_the_order_of_their_rows(tmp_path: Path) -> None:
    write_labels(tmp_path, shards=1)
    storage, pool = Storage(str(tmp_path)), ShardPool(Storage(str(tmp_path / "labels")), LABELS)
    expected = estimator_task(tmp_path)._tables["train"]
    (name,) = pool.storage.files()
    table = pool.storage.read_table(name)
    pool.storage.write_table(name, table.take(list(reversed(range(len(table))))))
    found = estimator_task(tmp_path)._tables["train"]
    assert found.video_ids == expected.video_ids and (found.interaction == expected.interaction).all()
    pool.storage.write_table(name, table.slice(1))
    with pytest.raises(DamagedFileError, match=rf"{name} does not hold 1 of the .* labels .*set aside\. Run the same"):
        estimator_task(tmp_path)._tables["train"]
    assert pool.lost(storage.read_table(f"labels-index/{INDEX_FILE}")) == [name]


def test_features_of_another_video_are_refused(tmp_path: Path) -> None:
    pool = ShardPool(Storage(str(tmp_path)), FEATURES)
    pool.commit([features("a", 1.0), features("b", 2.0)])
    index = pool.index()
    assert [clip.end_s for clip in FeatureStore(pool.storage, index, [1]).clips([1, 0])] == [2.0, 1.0]
    (name,) = pool.storage.files()
    shard = pa.Table.from_pylist([features("b", 2.0), features("a", 1.0)], schema=FEATURES)
    pool.storage.write_table(name, shard, row_group_size=1)
    with pytest.raises(DamagedFileError, match=r"its row 0 has the key b, and its index says a; run jobs\.index again"):
        FeatureStore(pool.storage, index, [1]).clips([0])
    assert pool.lost(index) == [name], "so that jobs.index finds work to do"


def features(key: str, end_s: float) -> dict[str, Any]:
    numbers = np.ones(4, np.float16)
    return {
        "video_id": key,
        "key": key,
        "coarse": numbers,
        "tokens": [1],
        "features": numbers,
        "logits": np.ones(1, np.float32),
        "time_s": [0.0],
        "end_s": end_s,
    }


def test_a_look_at_a_pool_costs_one_request_for_each_shard(s3: FlakyS3, bucket: Storage) -> None:
    pool = ShardPool(bucket, FRAMES)
    for keys in ("abcdefgh", "ijklmnop", "qrst"):
        pool.commit(rows(*keys))
    s3.requests.clear()
    index = pool.index(["error_reason", "error_message", "decoder", "time_s"])
    assert len(index) == 20
    assert [request.method for request in s3.requests] == ["GET"] * 4, "the list, and a footer of each"
    written_before_directories(pool, index.column("shard")[0].as_py(), *index.column("key").to_pylist()[:4])
    s3.requests.clear()
    assert len(pool.index()) >= 16
    assert len(s3.requests) > 4, "an older one is read row by row"


def test_an_open_shard_that_is_replaced_by_a_shorter_one_is_noticed(pool: ShardPool) -> None:
    store = FrameStore(pool.storage, pool.index(["video_id"]).sort_by("video_id"))
    assert store.encoded(0)
    path = shard_of(pool, "a")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(LostRowsError, match="set aside"):
        store.encoded(2)


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.slow_fault)])
def test_the_message_comes_through_the_loader(pool: ShardPool, processes: int) -> None:
    store = FrameStore(pool.storage, pool.index(["video_id"]).sort_by("video_id"))
    path = shard_of(pool, "a")
    cut_off(path)
    batches = load_ahead(Source(store), [(0, 3), (0, 0)], processes=processes, pin_memory=False)
    assert len(next(batches)) == 1
    with pytest.raises(LostRowsError, match=rf"{path}(.|\n)*Run the same command again"):
        next(batches)


class Source:
    """The frames of the video with the number of the step."""

    def __init__(self, store: FrameStore) -> None:
        self._store = store

    def __getitem__(self, address: tuple[int, int]) -> list[bytes]:
        return self._store.encoded(address[1])


def test_a_table_of_an_artifact_that_is_damaged_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_table("index.parquet", pa.table({"key": ["a"] * 100}))
    with pytest.raises(DamagedFileError, match=rf"{tmp_path}/index.parquet is not a table with \['shard'\]"):
        storage.read_table("index.parquet", columns=["shard"])
    cut_off(tmp_path / "index.parquet")
    with pytest.raises(DamagedFileError, match=rf"{tmp_path}/index.parquet is not a whole Parquet file.*damaged"):
        storage.read_table("index.parquet")


def two_stages(workspace: Path, ran: list[str]) -> Graph:
    """Frames in a pool, and a training that depends on them."""
    pool = ShardPool(Storage(str(workspace / "pool")), FRAMES)

    def decode(context: StageContext) -> dict[str, int]:
        done = set(pool.index().column("key").to_pylist())
        for keys in ("abc", "de"):
            if not done.issuperset(keys):
                ran.append(f"frames {keys}")
                pool.commit(rows(*keys))
        context.output.write_table(INDEX_FILE, pool.index())
        return {"rows": 5}

    def train(context: StageContext) -> dict[str, int]:
        ran.append("retrieval")
        return {"rows": 5}

    return Graph(
        Storage(str(workspace)),
        [
            Stage(
                name="frames",
                version=1,
                settings={},
                inputs=(),
                run=decode,
                lost=lambda artifact: pool.describe_loss(artifact.storage),
            ),
            Stage(name="retrieval", version=1, settings={}, inputs=("frames",), run=train),
        ],
    )


def execute(graph: Graph) -> list[tuple[str, str]]:
    """Plans and runs; state and reason of every stage."""
    steps = graph.plan()
    for step in steps:
        execute_step(graph, step, tracker=StageTracker(), config={})
    return [(step.state, step.reason) for step in steps]


DONE = ("done", "finished")


def test_the_next_run_makes_a_lost_shard_again_and_trains_nothing_again(tmp_path: Path) -> None:
    ran: list[str] = []
    graph = two_stages(tmp_path, ran)
    execute(graph)
    index = graph.output("frames").read_table(INDEX_FILE)
    shard_of(ShardPool(Storage(str(tmp_path / "pool")), FRAMES), "d").unlink()
    ran.clear()
    assert execute(graph) == [("damaged", "1 of its shards are missing"), DONE]
    assert ran == ["frames de"]
    assert graph.output("frames").read_table(INDEX_FILE) == index
    assert execute(graph) == [DONE, DONE]
    with pytest.raises(ValueError, match="the stage 'frames' before it is damaged"):
        cut_off(tmp_path / "pool" / index.column("shard")[0].as_py())
        ShardPool(Storage(str(tmp_path / "pool")), FRAMES).index()
        graph.plan(from_stage="retrieval")


@pytest.mark.parametrize("name", [INDEX_FILE, ARTIFACT])
@pytest.mark.parametrize("damage", [cut_off, empty, replace_by_text])
def test_a_finished_stage_with_a_damaged_file_runs_again_on_what_is_there(
    tmp_path: Path, name: str, damage: Any
) -> None:
    ran: list[str] = []
    graph = two_stages(tmp_path, ran)
    execute(graph)
    damage(Path(graph.output("frames").path(name)))
    ran.clear()
    ((state, reason), retrieval) = execute(graph)
    assert (state, retrieval) == ("damaged", DONE)
    assert name in reason
    assert ran == []
    assert execute(graph) == [DONE, DONE]


@pytest.mark.parametrize("document", [[], {}, {"version": 1, "finished_at": 2}, {"version": 1, "counts": []}])
def test_a_document_that_something_else_wrote_is_not_taken_for_an_artifact(tmp_path: Path, document: Any) -> None:
    ran: list[str] = []
    graph = two_stages(tmp_path, ran)
    graph.output("frames").write_json(ARTIFACT, document)
    ((state, reason), _) = execute(graph)
    assert state == "damaged"
    assert f"{ARTIFACT} is not the document of a finished stage" in reason
    assert ran == ["frames abc", "frames de", "retrieval"]


def test_a_json_document_that_is_damaged_is_named(tmp_path: Path) -> None:
    for content in (b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DamagedFileError, match=rf"{tmp_path}/a.json is not a JSON document"):
            Storage(str(tmp_path)).read_json("a.json")


def png_of(width: int, height: int, *, rows: int) -> bytes:
    """A PNG whose pixels, all of them black, take next to no space; it holds ``rows`` of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (png_of(8000, 8000, rows=8000), "8000 × 8000 pixels, more than 33,554,432"),
        (png_of(50_000, 50_000, rows=100), "exceeds limit"),
        (b"", "cannot identify"),
        (b"GIF89a" + bytes(100), "cannot identify"),
        (jpeg(1)[:-300], "Premature end"),
    ],
    ids=["bomb", "larger-bomb", "empty", "other-format", "cut-off"],
)
def test_a_stored_image_that_is_none_is_refused_before_it_takes_memory(image: bytes, reason: str) -> None:
    assert len(image) < 400_000
    with pytest.raises(ValueError, match=rf"an image cannot be used: .*{reason}"):
        decode_images([image])
