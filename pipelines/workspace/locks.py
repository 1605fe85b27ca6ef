"""One writer at a time, on any storage: claims with a heartbeat.

A process that wants a name writes a claim of its own and then lists the claims: it owns the name if there is no other
live one, otherwise it takes its claim back and waits. Of two processes the one that lists last sees both claims, so
they never own a name at the same time. The storage must only list everything that was written before, which folders, S3
and GCS do.

A claim is live while its owner refreshes it. The ages of two claims are compared by the storage's clock, never by the
clocks of two machines. On the same machine the owner's process is looked up instead, so that a killed run is recognised
at once.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "locks"
"""Of the workspace; a folder per name, a file per claim."""

_REFRESH_S = 20.0
# Six refreshes; a store that fails may delay one of them by 100 s (see file_systems).
_STALE_S = 120.0
_FIRST_POLL_S = 0.1
_LONGEST_POLL_S = 5.0
_REMIND_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a name."""

    user: str
    host: str
    pid: int
    process: str
    """Distinguishes the process from a later one with the same number on the same machine."""
    command: str
    since: str

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid} ({self.command}), since {self.since}"


@dataclass(frozen=True)
class Claim:
    """The file of a claim, and its owner."""

    path: str
    owner: Owner
    refreshed_ns: int


class LostLockError(RuntimeError):
    """Another process took a name over while this one was suspended or cut off from the storage."""


class Lock:
    """A held name; the heartbeat runs in a thread."""

    def __init__(self, workspace: Storage, path: str, content: bytes) -> None:
        self._workspace, self._path, self._content = workspace, path, content
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises ``LostLockError`` if the name is no longer held: call it before a commit."""
        if not self._workspace.exists(self._path):
            raise LostLockError(
                f"another process took over {self._workspace.place(self._path)} because this one had not refreshed it "
                f"for {_STALE_S:g} s; nothing was committed. Run the same command again"
            )

    def release(self) -> None:
        """Gives the name back."""
        self._stop.set()
        self._thread.join()
        self._workspace.delete(self._path)

    def _beat(self) -> None:
        while not self._stop.wait(_REFRESH_S):
            try:
                # A claim that another process has removed must not come back: the name would have two owners.
                if self._workspace.exists(self._path):
                    self._workspace.write_bytes(self._path, self._content)
            except OSError as error:
                # No reason to stop the work: whether the name is still held is checked before the commit.
                logger.warning("cannot refresh %s (%s); trying again", self._path, error)


@contextmanager
def held(workspace: Storage, name: str) -> Iterator[Lock]:
    """Holds ``name`` of ``workspace``, waiting until no other process does; says for whom it waits."""
    poll_s, reminded = _FIRST_POLL_S, -_REMIND_S
    while True:
        # A new file each time: whoever was reading one that was deleted and is there again would call it unreadable.
        path, content = _new_claim(name)
        workspace.write_bytes(path, content)
        others = _live_claims(workspace, name, own=path)
        if not others:
            break
        workspace.delete(path)
        if time.monotonic() - reminded >= _REMIND_S:
            logger.info("waiting for %s, which is held by %s", name, others[0].owner)
            reminded = time.monotonic()
        # A random wait: two processes that saw each other's claims would otherwise collide again.
        time.sleep(poll_s * random.uniform(0.5, 1.5))
        poll_s = min(2 * poll_s, _LONGEST_POLL_S)
    lock = Lock(workspace, path, content)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def held_if_free(workspace: Storage, name: str) -> Iterator[Lock | None]:
    """Holds ``name`` of ``workspace``; gives None where another process does."""
    path, content = _new_claim(name)
    workspace.write_bytes(path, content)
    # Of two that ask at the same moment, each sees the other's claim, and neither may get the name.
    if _live_claims(workspace, name, own=path):
        workspace.delete(path)
        yield None
        return
    lock = Lock(workspace, path, content)
    try:
        yield lock
    finally:
        lock.release()


def owners(workspace: Storage) -> dict[str, Owner]:
    """Who holds which name at this moment. Other machines' owners count as alive, since one listing cannot tell."""
    return {
        name: claims[0].owner
        for name in workspace.folders(FOLDER)
        if (claims := [claim for claim in _claims(workspace, name) if process_lives(claim.owner) is not False])
    }


def _new_claim(name: str) -> tuple[str, bytes]:
    """Path and content of a claim to ``name`` that is this process's own."""
    return f"{FOLDER}/{name}/{uuid.uuid4().hex}.json", json.dumps(asdict(this_process())).encode()


def _live_claims(workspace: Storage, name: str, *, own: str) -> list[Claim]:
    """The live claims of others; claims of dead owners are removed."""
    claims = _claims(workspace, name)
    # The own claim has just been written, so its time is the present by the storage's clock.
    now = max((claim.refreshed_ns for claim in claims if claim.path == own), default=0)
    live = []
    for claim in claims:
        if claim.path == own:
            continue
        lives = process_lives(claim.owner)
        if lives is None:
            lives = now - claim.refreshed_ns < _STALE_S * 1e9
        if lives:
            live.append(claim)
        else:
            logger.warning("%s was left by %s, which is gone; going on from there", name, claim.owner)
            workspace.delete(claim.path)
    return live


def _claims(workspace: Storage, name: str) -> list[Claim]:
    selector = pafs.FileSelector(workspace.path(FOLDER, name), allow_not_found=True)
    claims = []
    for info in workspace.filesystem.get_file_info(selector):
        # A claim that is being written has a name with a dot in front (see storage).
        if not info.base_name.endswith(".json") or info.base_name.startswith("."):
            continue
        path = f"{FOLDER}/{name}/{info.base_name}"
        # The claim may have been given back since the listing.
        with suppress(FileNotFoundError):
            claims.append(Claim(path, Owner(**workspace.read_json(path)), info.mtime_ns or 0))
    return sorted(claims, key=lambda claim: claim.path)


@cache
def this_process() -> Owner:
    """This process as an owner."""
    return Owner(
        user=_user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process_identity(os.getpid()) or "",
        # Without its arguments: an address among them may hold a password.
        command=Path(sys.argv[0]).stem,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def process_lives(owner: Owner) -> bool | None:
    """Whether the owner's process lives; None where this machine cannot know."""
    # Without /proc processes have no identity; then only the age of a claim tells.
    if not owner.process or owner.process.split("/")[0] != _machine():
        return None
    return _process_identity(owner.pid) == owner.process


def _process_identity(pid: int) -> str | None:
    """Machine and start time of a process; None if it does not run, or if the system does not tell."""
    try:
        # Field 22 of the line. Counted from the end of the name in brackets, which may contain spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # State Z: it has ended, and its parent has not asked how.
    return None if fields[0] == "Z" else f"{_machine()}/{fields[19]}"


@cache
def _machine() -> str:
    """This boot of this machine, and the name space in which process numbers hold."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink().name}"
    except OSError:
        return socket.gethostname()
