"""Runs that are killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory


def kill_when(line: Sequence[str], condition: Callable[[], bool], *, timeout_s: float = 180) -> None:
    """Starts a command, and kills it, and nothing else, as soon as ``condition`` holds; waits for its processes."""
    # Ray's folder outlives a driver that is killed, so it gets a place that is removed with the test.
    with (
        TemporaryDirectory(prefix="k-", ignore_cleanup_errors=True) as temporary,
        subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": temporary}
        ) as driver,
    ):
        try:
            deadline = time.monotonic() + timeout_s
            while not condition():
                assert driver.poll() is None, "the run ended before it could be killed"
                assert time.monotonic() < deadline, "the run did not get that far"
                time.sleep(0.01)
            started = descendants(driver.pid)
            # Ray's own agents do not notice that their driver was killed; everything else ends by itself.
            agents = {pid for pid in started if b"Agent" in command_of(pid)}
        finally:
            driver.kill()
        driver.wait()
        left = wait_until_gone(started - agents, timeout_s=60)
        for pid in left | agents:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, "processes outlived the driver that was killed"


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
