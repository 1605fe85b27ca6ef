from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.workspace.locks import FOLDER, LostLockError, held, owners
from pipelines.workspace.storage import Storage

_ENTER_AND_LEAVE = """
import os, sys, time
from pipelines.workspace.locks import held
from pipelines.workspace.storage import Storage
journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(3):
    with held(Storage(sys.argv[1]), "stage"):
        os.write(journal, f"enter {os.getpid()}\\n".encode())
        time.sleep(0.05)
        os.write(journal, f"leave {os.getpid()}\\n".encode())
"""

_HOLD = """
import sys, time
from pipelines.workspace.locks import held
from pipelines.workspace.storage import Storage
with held(Storage(sys.argv[1]), "stage"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage(str(tmp_path / "workspace"))
        return
    storage = Storage(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")
    yield storage
    storage.delete("")


def _claim(storage: Storage, **changes: Any) -> str:
    """The claim of a process on another machine."""
    owner = {
        "user": "ada",
        "host": "elsewhere",
        "pid": 7,
        "process": "another-boot/1",
        "command": "run",
        "since": "2026-01-01T00:00:00+00:00",
    }
    path = f"{FOLDER}/stage/0123.json"
    storage.write_bytes(path, json.dumps({**owner, **changes}).encode())
    return path


@pytest.mark.slow
def test_processes_that_want_the_same_name_take_turns(storage: Storage, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    processes = [subprocess.Popen([sys.executable, "-c", _ENTER_AND_LEAVE, storage.uri, str(journal)]) for _ in "abc"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    events = [line.split() for line in journal.read_text().splitlines()]
    assert len(events) == 18
    for (entered, first), (left, second) in zip(events[::2], events[1::2], strict=True):
        assert (entered, left) == ("enter", "leave")
        assert first == second
    assert owners(storage) == {}


def test_the_name_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", _HOLD, storage.uri], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert owners(storage)["stage"].pid == process.pid
        process.send_signal(signal.SIGKILL)
    assert owners(storage) == {}
    started = time.monotonic()
    with held(storage, "stage"):
        assert owners(storage)["stage"].pid == os.getpid()
    # Its claim was refreshed seconds ago: only the look at the process can tell that it is dead.
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_another_machine_is_waited_for_by_name(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    path = _claim(storage)
    caplog.set_level("INFO")
    entered = threading.Event()

    def enter() -> None:
        with held(storage, "stage"):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(1.5)
    assert "waiting for stage, which is held by ada on elsewhere, process 7 (run)" in caplog.text
    storage.delete(path)
    thread.join(timeout=30)
    assert entered.is_set()


def test_a_claim_that_was_taken_back_does_not_come_back_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    others = _claim(storage)
    written: list[str] = []
    write_bytes = Storage.write_bytes

    def write(self: Storage, path: str, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            self.delete(others)
        write_bytes(self, path, data)

    monkeypatch.setattr(Storage, "write_bytes", write)
    with held(storage, "stage"):
        assert len(set(written)) == 3


def test_a_claim_that_another_machine_no_longer_refreshes_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path))
    path = _claim(storage)
    long_ago = time.time() - 600
    os.utime(storage.path(path), (long_ago, long_ago))
    with held(storage, "stage"):
        assert not storage.exists(path)
    assert "left by ada on elsewhere" in caplog.text


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(storage, "stage"):
        mine = owners(storage)["stage"]
    machine = mine.process.split("/")[0]
    path = _claim(storage, pid=os.getpid(), process=f"{machine}/1")
    with held(storage, "stage"):
        assert not storage.exists(path)


def test_who_was_taken_over_does_not_commit(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(storage, "stage") as lock:
        lock.check()
        storage.delete(f"{FOLDER}/stage")
        with pytest.raises(LostLockError, match="nothing was committed"):
            lock.check()


def test_other_names_are_free(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with held(storage, "one"), held(storage, "two"):
        assert set(owners(storage)) == {"one", "two"}
