from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.configs import Split
from pipelines.data.splits import SplitView
from pipelines.records import FRAMES, INDEX_FILE, MANIFEST, MANIFEST_FILE
from pipelines.shards import ShardPool
from pipelines.storage import Storage

# Not in alphabetical order; clip "lost" has no frames.
MANIFEST_ROWS: list[tuple[str, Split, list[str]]] = [
    ("zebra", "train", ["a zebra", "stripes"]),
    ("lost", "train", ["nothing"]),
    ("ant", "test", ["an ant"]),
    ("mouse", "train", ["a mouse", "cheese", "a cat"]),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    manifest = [
        {"video_id": name, "uri": f"/{name}", "key": name, "split": split, "captions": captions, "questions": []}
        for name, split, captions in MANIFEST_ROWS
    ]
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    pool = ShardPool(storage.folder("pool"), FRAMES)
    for names in (["ant", "mouse"], ["zebra"]):
        pool.commit(
            [
                {"video_id": name, "key": name, "frames": [name.encode()], "frame_index": [0], "time_s": [0.0]}
                for name in names
            ]
        )
    storage.write_table(f"frames/{INDEX_FILE}", pool.index(["video_id"]))
    return storage


def view(workspace: Storage, split: Split) -> SplitView:
    return SplitView(workspace.folder("manifest"), workspace.folder("frames"), workspace.folder("pool"), split)


def test_a_split_holds_its_videos_with_frames_in_the_order_of_the_manifest(workspace: Storage) -> None:
    train = view(workspace, "train")
    assert train.store.video_ids == ["zebra", "mouse"]
    assert train.captions_per_video == [2, 3]
    assert len(train) == 2
    assert view(workspace, "test").store.video_ids == ["ant"]


def test_captions_and_frames_belong_together(workspace: Storage) -> None:
    train = view(workspace, "train")
    assert (train.captions(0), train.store.encoded(0)) == (["a zebra", "stripes"], [b"zebra"])
    assert (train.captions(1), train.store.encoded(1)) == (["a mouse", "cheese", "a cat"], [b"mouse"])


def test_texts_name_their_video_and_their_number(workspace: Storage) -> None:
    texts, videos, numbers = view(workspace, "train").texts_of([1, 0])
    assert texts == ["a mouse", "cheese", "a cat", "a zebra", "stripes"]
    assert videos == [1, 1, 1, 0, 0]
    assert numbers == [0, 1, 2, 0, 1]


def test_a_split_may_be_empty(workspace: Storage) -> None:
    empty = view(workspace, "val")
    assert len(empty) == 0
    assert empty.texts_of(range(0)) == ([], [], [])
