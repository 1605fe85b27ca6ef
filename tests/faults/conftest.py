"""Failing places and bad videos: a store behind a spoiling proxy, a small disk, another account."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.workspace.storage import Storage
from tests.faults.finished_run import FinishedRun, write_full_recipe
from tests.faults.flaky_s3 import FlakyS3, flaky_s3
from tests.pipelines.conftest import process, real_videos, remux, write_video

__all__ = ["process", "real_videos", "remux", "write_video"]

DISK_BYTES = 1 << 20
NOBODY = 65534


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    """``host:port`` of a real S3 server on loopback with the bucket ``bucket``."""
    import boto3
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    # A line for each of thousands of requests would bury the tests' own output.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WSGIRequestHandler, "log", lambda *_: None)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).create_bucket(Bucket="bucket")
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture
def s3(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """The store through its proxy; endpoint and credentials are in the environment, as for a user."""
    with flaky_s3(moto_address) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails for ever is given up after a fraction of a second instead of 100."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


@pytest.fixture
def bucket(s3: FlakyS3, tmp_path: Path) -> Storage:
    """A folder of this test in the bucket."""
    return Storage(f"s3://bucket/{tmp_path.name}")


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own at ``path``, with a megabyte unless a test asks for more."""

    path: Path

    def fill(self, *, leave: int = 0) -> None:
        """Takes all of the space but for ``leave`` bytes."""
        state = os.statvfs(self.path)
        with (self.path / ".filler").open("wb") as file:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, max(state.f_bavail * state.f_bsize - leave, 1))

    def make_room(self) -> None:
        """Gives the space back."""
        (self.path / ".filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system that can be full."""
    with mounted(tmp_path / "disk", DISK_BYTES) as disk:
        yield disk


class mounted:
    """A small file system in memory at ``path``, as long as the block lasts; skips where mounting is forbidden."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __enter__(self) -> SmallDisk:
        self._path.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self._path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
        return SmallDisk(self._path)

    def __exit__(self, *_: object) -> None:
        # Lazily: a process that a test has killed may still be about to let go of a file.
        subprocess.run(["umount", "--lazy", str(self._path)], check=True)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """For root, the rights of an account without any; others have none anyway."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory, ray_local: Any) -> FinishedRun:
    """All stages of a small recipe."""
    return FinishedRun(write_full_recipe(tmp_path_factory.mktemp("full-run"), "retrieval", "video_qa"))


@pytest.fixture(scope="session")
def questions_alone(tmp_path_factory: pytest.TempPathFactory, ray_local: Any) -> FinishedRun:
    """The stages of question answering alone."""
    return FinishedRun(write_full_recipe(tmp_path_factory.mktemp("questions-alone"), "video_qa"))
