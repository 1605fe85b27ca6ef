"""What a local Ray leaves behind when its driver is killed: the next run that starts one removes it.

Ray ends by itself when its driver is gone, but for two agents, and its folder stays. The folder
holds a file that names the process it belongs to; where that process is known to be dead, the
folder and whoever still has a file in it open are removed. Nothing else is touched.
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


def make_session_folder() -> Path:
    """A new folder for a local Ray; it belongs to this process."""
    # Socket paths are limited to 107 bytes, so Ray's folder lies under the system's own.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (folder / _OWNER).write_text(json.dumps(asdict(this_process())))
    return folder


def keep_session_folder(folder: Path) -> None:
    """Leaves a folder and the logs in it to the user; no later run removes it."""
    (folder / _OWNER).unlink(missing_ok=True)


def remove_dead_sessions() -> None:
    """Removes the folders and the processes that killed runs of this user left on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = _owner(folder)
        if owner is None or process_lives(owner) is not False:
            continue
        left = [pid for pid in _processes() if any(_is_below(file, folder) for file in _open_files(pid))]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("Ray: removed %s and %d processes, left by %s, which is gone", folder, len(left), owner)


def _owner(folder: Path) -> Owner | None:
    """To whom a folder of this user belongs; None where it does not say so."""
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
