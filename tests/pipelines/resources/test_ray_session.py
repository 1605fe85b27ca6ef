"""A cluster that is not there, temporary folders that are too long for sockets, and threads of workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.resources.ray_leftovers import make_session_folder
from pipelines.resources.ray_session import require_answer

SOCKET = "session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store"

DRIVER = """
import os
import pyarrow as pa
from pipelines.recipe.resources import ActorResources, ResourcesConfig
from pipelines.resources.ray_session import ray_session
from pipelines.resources.sharded_work import map_shards

class Threads:
    def __call__(self, table):
        return pa.table({"threads": [os.environ["OMP_NUM_THREADS"]]})

# The second one, too, whatever the first has left.
for _ in range(2):
    with ray_session(ResourcesConfig(local_cpus=3, local_object_store_gb=0.15)):
        resources = ActorResources(max_actors=1, cpus_per_actor=2)
        (row,) = map_shards([pa.table({"a": [1]})], Threads, name="threads", resources=resources)
        print(row["threads"], os.environ["OMP_NUM_THREADS"])
"""


def test_a_cluster_that_is_gone_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            require_answer(address)
    with pytest.raises(ConnectionError, match=rf"no Ray cluster answers at 127.0.0.1:{port} .*RAY_ADDRESS"):
        require_answer(f"127.0.0.1:{port}")
    require_answer("auto")


def test_a_long_folder_for_temporary_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = make_session_folder()
    try:
        assert not folder.is_relative_to(long)
        with socket.socket(socket.AF_UNIX) as server:
            place = folder / SOCKET
            place.parent.mkdir(parents=True)
            server.bind(str(place))
            assert len(os.fsencode(place)) <= 107
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


@pytest.mark.long
def test_a_worker_of_a_local_ray_has_as_many_threads_as_it_reserves_cpus() -> None:
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, env=free, check=False)
    assert done.stdout.split() == ["2", "1"] * 2, done.stderr
