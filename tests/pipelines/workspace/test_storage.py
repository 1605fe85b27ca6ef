from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from pipelines.workspace.errors import StorageError
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri, is_local, shown


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage(str(tmp_path / "workspace"))
        return
    storage = Storage(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")
    yield storage
    storage.delete("")


def test_what_is_written_is_read_back(storage: Storage) -> None:
    storage.write_bytes("a/b.bin", b"\x00\xff")
    storage.write_json("a/c.json", {"x": [1, None]})
    table = pa.table({"key": ["k", "l"], "frames": [[b"1", b"22"], []]})
    assert storage.write_table("a/d.parquet", table, row_group_size=1) > 0
    assert storage.read_bytes("a/b.bin") == b"\x00\xff"
    assert storage.read_json("a/c.json") == {"x": [1, None]}
    assert storage.read_table("a/d.parquet") == table
    assert storage.read_table("a/d.parquet", columns=["key"]) == table.select(["key"])


def test_a_file_is_replaced_whole(storage: Storage) -> None:
    storage.write_bytes("a", b"a long first version")
    storage.write_bytes("a", b"short")
    assert storage.read_bytes("a") == b"short"


def test_bytes_stay_as_they_are_whatever_the_name_says(storage: Storage) -> None:
    storage.write_bytes("questions.json.gz", b"not compressed")
    assert storage.read_bytes("questions.json.gz") == b"not compressed"


def test_an_object_that_is_deleted_while_it_is_read_is_not_there(s3_bucket: str, tmp_path: Path) -> None:
    storage = Storage(f"{s3_bucket}/{tmp_path.name}")
    storage.write_bytes("claim.json", b"{}")
    filesystem, root = resolve(storage.uri)

    class DeletedOnceOpened:
        def open_input_file(self, path: str) -> pa.NativeFile:
            file = filesystem.open_input_file(path)
            filesystem.delete_file(path)
            return file

        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

    storage.__dict__["_root"] = DeletedOnceOpened(), root
    with pytest.raises(FileNotFoundError, match=r"claim\.json"):
        storage.read_bytes("claim.json")


def test_listing_names_files_and_folders_in_order(storage: Storage) -> None:
    assert storage.files() == storage.folders() == storage.files("none") == []
    for name in ("b.json", "a.json", "a.txt", "inner/c.json"):
        storage.write_bytes(name, b"1")
    assert storage.files() == ["a.json", "a.txt", "b.json"]
    assert storage.files(suffix=".json") == ["a.json", "b.json"]
    assert storage.folders() == ["inner"]
    assert storage.folder("inner").files() == ["c.json"]
    assert storage.exists("inner")
    assert storage.exists("inner/c.json")
    assert not storage.exists("inner/d.json")


def test_deleting_takes_files_and_folders_and_forgives_absence(storage: Storage) -> None:
    storage.write_bytes("a", b"1")
    storage.write_bytes("inner/b", b"1")
    for path in ("a", "inner", "never"):
        storage.delete(path)
    assert storage.files() == storage.files("inner") == []


def test_a_folder_travels_up_and_down(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"1")
    (source / "deep" / "b").write_bytes(b"2")
    storage.upload(source, "model")
    copy = storage.download("model", tmp_path / "copy")
    assert {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == {
        "a": b"1",
        "deep/b": b"2",
    }


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    storage.write_bytes("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert copy.read_bytes("a") == b"1"


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "a/../../b", "../workspace-of-others/a"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    storage = Storage(str(tmp_path / "workspace"))
    for attempt in (
        lambda: storage.write_bytes(path, b"1"),
        lambda: storage.read_bytes(path),
        lambda: storage.delete(path),
        lambda: storage.folder(path),
    ):
        with pytest.raises(ValueError, match="would leave"):
            attempt()


def test_a_writer_that_is_killed_leaves_nothing_visible(tmp_path: Path) -> None:
    # It is stopped where its data are on the disk and only the commit is missing.
    code = (
        "import os, time; from pipelines.workspace.storage import Storage\n"
        "os.fsync = lambda descriptor: (print('written', flush=True), time.sleep(60))\n"
        f"Storage({str(tmp_path)!r}).write_bytes('shards/a.parquet', b'1' * 100_000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "written"
        writer.send_signal(signal.SIGKILL)
    storage = Storage(str(tmp_path))
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert storage.files("shards") == []
    assert not storage.exists("shards/a.parquet")


def test_a_write_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*/a: Is a directory\."):
        Storage(str(tmp_path)).write_bytes("a", b"1")
    assert list((tmp_path / "a").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unknown_schemes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'ftp://host/a'.*s3://"):
        resolve("ftp://host/a")


def test_local_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("workspace/") == f"{tmp_path}/workspace"
    assert absolute_uri("s3://bucket/a/") == "s3://bucket/a"
    assert Storage(f"file://{tmp_path}/a").path("b") == f"{tmp_path}/a/b"
    assert [is_local(uri) for uri in ("a", "/a", "file:///a", "s3://a", "gs://a")] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b",
        "s3://b/a",
        "s3://b//a",
        "s3://b/a%20b.mp4",
        "s3://b/%C3%BC+%2F",
        "s3://b/a?region=eu-west-1",
        "s3://b.c",
    ],
)
def test_addresses_in_a_bucket_mean_what_arrow_says(s3_bucket: str, uri: str) -> None:
    filesystem, path = resolve(uri)
    assert path == pafs.FileSystem.from_uri(uri)[1]
    assert resolve(uri)[0] is filesystem, "one connection serves all videos"


def test_other_credentials_are_another_connection(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve(s3_bucket)[0]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    assert resolve(s3_bucket)[0] is not before


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("s3://key:secret@bucket/a?scheme=http") == "s3://bucket/a"
    assert shown("/videos/what?@home.mp4") == "/videos/what?@home.mp4"


def test_a_number_of_attempts_that_is_none_is_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(ValueError, match=r"AWS_MAX_ATTEMPTS is 'many'; give how often"):
        Storage(s3_bucket).read_bytes("a")
