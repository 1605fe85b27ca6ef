"""Records the runs of a process in MLflow. What a server misses while it cannot be reached is recorded later.

Curves, files and models are in the workspace anyway. So while the server cannot be reached, only a note is kept for
each run, ``unrecorded/<time and name>/<key>.json``: its settings and values, and where the rest lies. When the server
is back, or in the next run in the workspace, MLflow's runs are updated from notes and workspace.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypeVar

from pipelines.tracking.run_state import RunState, in_order
from pipelines.train.history import Point
from pipelines.workspace.errors import StorageError
from pipelines.workspace.locks import held, held_if_free
from pipelines.workspace.runs import UNRECORDED
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    from pipelines.tracking.recorder import MlflowRecorder

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_FORMER_FOLDER = "undelivered"
"""Folder of the workspace in which older versions kept calls to MLflow."""


class AwayError(StorageError):
    """The server cannot be reached or has an error of its own; the same request may succeed later."""


class Recording:
    """The runs of one process.

    Args:
        workspace: where the notes are kept.
        server: its name in messages.
        recorder: writes to MLflow.

    Raises:
        StorageError: the server refuses; a server that cannot be reached is only a warning.
    """

    def __init__(self, workspace: Storage, server: str, recorder: MlflowRecorder) -> None:
        self._workspace, self._server, self._recorder = workspace, server, recorder
        # Sorted by name they are in the order of time.
        self._name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex}"
        self._notes = workspace.folder(UNRECORDED, self._name)
        self._lock = threading.Lock()
        self._claim = ExitStack()
        self._claimed = False
        self._open: dict[str, RunState] = {}
        self._missed: dict[str, RunState] = {}
        """Runs of which the server does not have everything yet."""
        self._refusal: StorageError | ValueError | None = None
        self._closing = threading.Event()
        self._waiter: threading.Thread | None = None
        """Waits for the server while it cannot be reached."""
        try:
            recorder.require_answer()
            record_left(workspace, server, recorder)
        except AwayError as error:
            self._go_away(error)

    def save(self, run: RunState, points: Sequence[Point] | None = ()) -> None:
        """Updates MLflow's run to ``run`` and adds new ``points`` of its curves; None = all of its history.

        While the server cannot be reached this returns at once: the points are in the history, the rest is noted.

        Raises:
            StorageError: the server or database refuses what is sent, or what was sent in the background; or the
                note cannot be written.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if run.status == "RUNNING":
                self._open[run.key] = run
            else:
                self._open.pop(run.key, None)
            if self._waiter is None:
                try:
                    # While there is a waiter, it alone uses the recorder, so that no caller waits for a slow server.
                    self._recorder.record(run, points)
                    return
                except AwayError as error:
                    self._go_away(error)
            self._note(run)

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """The answer to a question to the server; None while it cannot be reached."""
        with self._lock:
            if self._waiter is None:
                try:
                    return question()
                except AwayError as error:
                    self._go_away(error)
        return None

    def close(self) -> None:
        """Tries once more if the server cannot be reached; what is still missing is left to the next run in the
        workspace.

        Raises:
            StorageError: the server refuses what it had missed.
        """
        self._closing.set()
        if (waiter := self._waiter) is not None:
            waiter.join()
        if self._waiter is not None and self._refusal is None and not self._catch_up():
            logger.info("%d runs are not completely recorded; %s says which", len(self._missed), self._notes.place())
        self._claim.close()
        if self._refusal is not None:
            raise self._refusal

    def _note(self, run: RunState) -> None:
        if not self._claimed:
            # While this lock is held no other process records these runs.
            self._claim.enter_context(held(self._workspace, _claim_name(self._name)))
            self._claimed = True
        if self._missed.get(run.key) != run:
            self._notes.write_json(f"{run.key}.json", {"server": self._server, "run": asdict(run)})
        # A new object each time, because its history may have grown.
        self._missed[run.key] = replace(run)

    def _go_away(self, error: AwayError) -> None:
        """Warns once that the server cannot be reached, notes what it may miss, and waits for it."""
        logger.warning(
            "%s. The run goes on: what the server misses is in the workspace, and is recorded as soon as it is back, "
            "or else by the next run in this workspace. %s says of which runs",
            error,
            self._notes.place(),
        )
        self._waiter = threading.Thread(target=self._wait_until_back, name="unrecorded", daemon=True)
        self._waiter.start()
        for run in self._open.values():
            self._note(run)

    def _wait_until_back(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.wait(pause_s):
            if self._catch_up():
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _catch_up(self) -> bool:
        """Records what was missed; returns whether nothing is left to try."""
        count = 0
        try:
            self._recorder.require_answer()
            record_left(self._workspace, self._server, self._recorder)
            while True:
                with self._lock:
                    missed = sorted(self._missed.values(), key=in_order)
                    if not missed:
                        self._notes.delete("")
                        self._waiter = None
                        logger.info("%s is back and has all that it missed of %d runs", self._server, count)
                        return True
                # Without the lock, so that save returns at once meanwhile.
                for run in missed:
                    self._recorder.record(run, None)
                    with self._lock:
                        # Another object means that more was missed while this one was recorded.
                        if self._missed[run.key] is run:
                            del self._missed[run.key]
                            count += 1
        except AwayError:
            return False
        except (StorageError, ValueError) as error:
            self._refusal = error
            return True


def is_left(workspace: Storage) -> bool:
    """Whether earlier runs in the workspace are not completely recorded."""
    return any(map(workspace.folders, (UNRECORDED, _FORMER_FOLDER)))


def record_left(workspace: Storage, server: str, recorder: MlflowRecorder) -> None:
    """Records what ``server`` has missed of earlier runs in the workspace.

    Runs that never ended are ended as ``KILLED``, because their process is gone.

    Args:
        workspace: where their notes are kept.
        server: its name in messages; notes for other servers are left alone.
        recorder: writes to MLflow.

    Raises:
        AwayError: the server cannot be reached.
    """
    if workspace.folders(_FORMER_FOLDER):
        logger.warning(
            "%s holds calls to an MLflow server that an older version of this program kept, and that this version "
            "does not send: remove the folder",
            workspace.place(_FORMER_FOLDER),
        )
    for name in workspace.folders(UNRECORDED):
        notes = workspace.folder(UNRECORDED, name)
        with held_if_free(workspace, _claim_name(name)) as claim:
            # Its process still works on it, or has recorded everything in the meantime.
            if claim is None or not (files := notes.files(suffix=".json")):
                continue
            try:
                documents = [notes.read_json(file) for file in files]
                others = {str(document["server"]) for document in documents} - {server}
                runs = sorted((RunState(**document["run"]) for document in documents), key=in_order)
                if others:
                    logger.warning(
                        "%s says what %s has missed of %d runs: set MLFLOW_TRACKING_URI to it, or remove the folder",
                        notes.place(),
                        ", ".join(sorted(others)),
                        len(runs),
                    )
                    continue
                for run in runs:
                    if run.status == "RUNNING":
                        run = replace(run, status="KILLED", ended_ms=int(time.time() * 1000))
                    recorder.record(run, None)
            except AwayError:
                raise
            # A note that is damaged, or that the server refuses, must not stop a run that has nothing to do with it.
            except (StorageError, ValueError, LookupError, TypeError, AttributeError) as error:
                logger.warning(
                    "the runs in %s cannot be recorded: %s. Remove the folder to give them up", notes.place(), error
                )
                continue
            notes.delete("")
            logger.info("%s has all that it missed of %d earlier runs", server, len(runs))


def _claim_name(name: str) -> str:
    return f"{UNRECORDED}-{name}"
