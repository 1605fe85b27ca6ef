"""A disk without space, under what is written to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.models.weights import save_model
from pipelines.train.checkpoints import Position, save_training
from pipelines.workspace.errors import StorageError
from pipelines.workspace.records import FRAMES
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.faults.conftest import SmallDisk

pytestmark = pytest.mark.fault


def rows(*keys: str) -> list[dict[str, Any]]:
    """Rows of 100 kB each."""
    return [
        {"video_id": key, "key": key, "frames": [key.encode() * 100_000], "frame_index": [0], "time_s": [0.0]}
        for key in keys
    ]


def test_a_full_disk_is_named_and_holds_nothing_of_what_did_not_fit(small_disk: SmallDisk) -> None:
    storage = Storage(str(small_disk.path / "workspace"))
    storage.write_bytes("a", b"old")
    small_disk.fill(leave=16 << 10)
    for path in ("a", "b", "new/folder/c"):
        with pytest.raises(StorageError, match=rf"cannot write {storage.uri}/{path}: No space left.*make room"):
            storage.write_bytes(path, b"2" * 100_000)
    assert storage.read_bytes("a") == b"old"
    assert storage.files() == ["a"]
    assert not [path for path in small_disk.path.rglob("*") if path.name.startswith(".tmp")]
    small_disk.make_room()
    storage.write_bytes("b", b"2" * 100_000)


def test_a_limit_on_the_size_of_files_is_named_too(tmp_path: Path) -> None:
    """Needs no rights, unlike the tests with a disk of their own."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from pipelines.workspace.storage import Storage, StorageError\n"
        f"storage = Storage({str(tmp_path)!r})\n"
        "try: storage.write_bytes('a', b'1' * 100_000)\n"
        "except StorageError as error: print(error)\n"
        "storage.write_bytes('b', b'1' * 10_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"cannot write {tmp_path}/a: File too large. No space is left there" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_rerun_on_a_disk_with_room_again_makes_the_missing_shards_alone(
    small_disk: SmallDisk, tmp_path: Path
) -> None:
    unhindered = ShardPool(Storage(str(tmp_path / "unhindered")), FRAMES)
    pool = ShardPool(Storage(str(small_disk.path)), FRAMES)
    pieces = [rows("a", "b"), rows("c", "d"), rows("e")]
    for piece in pieces:
        unhindered.commit(piece)
    pool.commit(pieces[0])
    small_disk.fill(leave=150_000)
    with pytest.raises(StorageError, match="No space left"):
        pool.commit(pieces[1])
    pool.commit(pieces[2])
    assert sorted(pool.index().column("key").to_pylist()) == ["a", "b", "e"]
    small_disk.make_room()
    pool.commit(pieces[1])
    assert pool.index() == unhindered.index()
    for name in unhindered.storage.files():
        assert pool.storage.read_bytes(name) == unhindered.storage.read_bytes(name)


def test_a_checkpoint_that_does_not_fit_is_named(small_disk: SmallDisk) -> None:
    model = torch.nn.Linear(400, 400)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(400)).sum().backward()
    optimizer.step()
    small_disk.fill(leave=100_000)
    with pytest.raises(StorageError, match=rf"cannot write a checkpoint to {small_disk.path}: .*make room"):
        save_model(small_disk.path, model, kind="any", config={})
    with pytest.raises(StorageError, match=rf"cannot write a checkpoint to {small_disk.path}: .*make room"):
        save_training(small_disk.path, optimizer=optimizer, schedule={}, position=Position())
