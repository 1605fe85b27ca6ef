"""Runs that are killed on the way, and processes of theirs that are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.train.files import CHECKPOINTS, HISTORY, RAY_SNAPSHOT
from pipelines.workspace.storage import Storage


def kill_when(
    line: Sequence[str],
    condition: Callable[[], bool],
    *,
    timeout_s: float = 180,
) -> None:
    """Starts a command, and kills it, and nothing else, as soon as ``condition`` holds; waits for its processes."""
    # Ray's folder outlives a driver that is killed, so it gets a place that is removed with the test.
    with TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as temporary:
        said = Path(temporary) / "said.txt"
        with (
            said.open("w") as file,
            subprocess.Popen(line, stdout=file, stderr=file, env={**os.environ, "TMPDIR": temporary}) as driver,
        ):
            try:
                wait_until(condition, alive=lambda: driver.poll() is None, timeout_s=timeout_s)
                started = descendants(driver.pid)
                # Ray's own agents do not notice that their driver was killed; everything else ends by itself.
                agents = {pid for pid in started if b"Agent" in command_of(pid)}
            except AssertionError as error:
                raise AssertionError(f"{error}; it said: {said.read_text()[-3000:]}") from error
            finally:
                driver.kill()
            driver.wait()
            left = wait_until_gone(started - agents, timeout_s=60)
            for pid in left | agents:
                kill(pid)
            assert not left, "processes outlived the driver that was killed"


def wait_until(condition: Callable[[], bool], *, alive: Callable[[], bool], timeout_s: float = 180) -> None:
    """Returns as soon as ``condition`` holds of a run; fails where the run ends before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert alive(), "the run ended before it came to that"
        assert time.monotonic() < deadline, "the run did not get that far"
        time.sleep(0.02)


def kill(pid: int) -> None:
    """Kills a process that may be gone already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def has_checkpoint(training: Storage) -> bool:
    """Whether a training has told of a step, and has a checkpoint to go on from."""
    if not training.exists(HISTORY):
        return False
    if training.exists(CHECKPOINTS):
        return training.folder(CHECKPOINTS).exists("index.json")
    if not training.exists(RAY_SNAPSHOT):
        return False
    content = training.read_bytes(RAY_SNAPSHOT)
    # Ray empties the file before it writes it anew.
    return bool(content) and bool(json.loads(content)["checkpoint_results"])


def workers_at(work: str, *, below: int | None = None) -> set[int]:
    """Ray's workers below a process, by default this one, that are at something with ``work`` in its name."""
    found = {pid: command_of(pid) for pid in descendants(below or os.getpid())}
    return {pid for pid, command in found.items() if command.startswith(b"ray::") and work.encode() in command}


def worker_at(work: str, *, alive: Callable[[], bool]) -> int:
    """One of them, as soon as there is one."""
    found: set[int] = set()

    def is_there() -> bool:
        found.update(workers_at(work))
        return bool(found)

    wait_until(is_there, alive=alive)
    return found.pop()


def command_of(pid: int) -> bytes:
    """The command line of a process; empty if there is none any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def descendants(pid: int) -> set[int]:
    """The processes that ``pid`` started, and those that they did."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        waiting += (new := set(children.get(waiting.pop(), ())) - found)
        found |= new
    return found


def wait_until_gone(pids: Iterable[int], *, timeout_s: float) -> set[int]:
    """The processes that are still there after the timeout."""
    left = set(pids)
    deadline = time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = {pid for pid in left if Path(f"/proc/{pid}").exists()}
    return left
