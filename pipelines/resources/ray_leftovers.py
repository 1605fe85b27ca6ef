"""What a local Ray leaves behind when its driver is killed: the next run that starts one removes it.

When its driver is killed, a local Ray ends by itself except for two agents, and its folder stays. A file in the folder
names the process that it belongs to. If that process is known to be dead, processes that have a file in the folder open
are ended and the folder is removed. Nothing else is touched.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pipelines.workspace.locks import Owner, process_lives, this_process

logger = logging.getLogger(__name__)

_PREFIX = "ray-"
_OWNER = "owner.json"

_LONGEST_PLACE = 107 - len("/ray-12345678/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store")
"""Longest path of a folder in bytes: the path of Ray's longest socket below it then has 107 bytes, Linux's limit."""

_SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - the folder in it is made by mkdtemp


def make_session_folder() -> Path:
    """A new folder for a local Ray; it belongs to this process."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_place()))
    (folder / _OWNER).write_text(json.dumps(asdict(this_process())))
    return folder


def _place() -> Path:
    """The folder for temporary files, or a shorter one: Ray's sockets lie below it, and their paths are limited."""
    wanted = Path(tempfile.gettempdir())
    for place in (wanted, *_SHORT_PLACES):
        if len(os.fsencode(place)) <= _LONGEST_PLACE and os.access(place, os.W_OK | os.X_OK):
            if place != wanted:
                logger.info("Ray: %s is too long for the paths of sockets; it works in %s", wanted, place)
            return place
    raise OSError(
        f"the folder for temporary files, {wanted}, is too long for the sockets of a local Ray (at most "
        f"{_LONGEST_PLACE} bytes), and {' and '.join(map(str, _SHORT_PLACES))} cannot be written; set TMPDIR to a "
        "shorter folder"
    )


def keep_session_folder(folder: Path) -> None:
    """Leaves a folder and the logs in it to the user; no later run removes it."""
    (folder / _OWNER).unlink(missing_ok=True)


def remove_dead_sessions() -> None:
    """Removes the folders and the processes that killed runs of this user left on this machine."""
    places = {Path(tempfile.gettempdir()), *_SHORT_PLACES}
    for folder in (folder for place in places for folder in place.glob(f"{_PREFIX}*")):
        owner = _owner(folder)
        # None = not known: the process may live in another container that shares this folder.
        if owner is None or process_lives(owner) is not False:
            continue
        left = [pid for pid in _processes() if any(_is_below(file, folder) for file in _open_files(pid))]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("Ray: removed %s and %d processes, left by %s, which is gone", folder, len(left), owner)


def _owner(folder: Path) -> Owner | None:
    """The process to which a folder of this user belongs; None if the folder does not say."""
    with suppress(OSError, ValueError, TypeError):
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            return Owner(**json.loads((folder / _OWNER).read_text()))
    return None


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _open_files(pid: int) -> Iterator[str]:
    """Paths of the files that a process of this user has open."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield str(descriptor.readlink())


def _is_below(file: str, folder: Path) -> bool:
    return file.startswith(f"{folder}{os.sep}")
