"""A cluster that is not there, and temporary folders that are too long for sockets."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from pipelines.resources.ray_leftovers import make_session_folder
from pipelines.resources.ray_session import require_answer

SOCKET = "session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store"


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
