"""Calls to a tracking server: made at once, or kept in the workspace while the server is away.

Kept calls lie in ``<workspace>/undelivered/<time and name>`` in the order in which they were made, and
are delivered in that order: in the background as soon as the server answers again, else by the next run
in the workspace. Every call may be made twice, so a process may be killed at any point.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from pipelines.workspace.errors import StorageError
from pipelines.workspace.line_log import LineLog
from pipelines.workspace.locks import held, held_if_free
from pipelines.workspace.runs import UNDELIVERED
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

"""Of the workspace; a folder per run whose calls are kept."""

Call = Mapping[str, Any]
"""``call``: its name; ``run``: the key of the run; and what else it needs, as JSON."""

Answer = TypeVar("Answer")

_CALLS, _SERVER = "calls.jsonl", "server.json"
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 60.0
_JOINED_POINTS = 500


class AwayError(StorageError):
    """The server cannot be reached, or is in trouble: later it may do what it was asked."""


class Recorder(Protocol):
    """Who makes the calls; raises ``AwayError`` where the server is away."""

    def require_answer(self) -> None:
        """Returns if the server answers."""
        ...

    def make(self, call: Call) -> None:
        """Makes a call, which may have been made before."""
        ...

    def end_open(self, runs: Sequence[str]) -> None:
        """Ends those of the runs with these keys that were never ended: their process is gone."""
        ...


class Outbox:
    """The calls of one run of a command.

    Args:
        workspace: where they are kept.
        server: as it is named to the user.
        recorder: makes the calls.

    Raises:
        StorageError: the server refuses; one that is away is a warning.
    """

    def __init__(self, workspace: Storage, server: str, recorder: Recorder) -> None:
        self._workspace, self._server, self._recorder = workspace, server, recorder
        # By name they are in the order of time.
        self._name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex}"
        self._folder = workspace.folder(UNDELIVERED, self._name)
        self._log = LineLog(self._folder, _CALLS)
        self._lock = threading.Lock()
        self._claim = ExitStack()
        self._claimed = False
        self._kept = self._delivered = 0
        self._refusal: StorageError | None = None
        self._closing = threading.Event()
        self._deliverer: threading.Thread | None = None
        """Runs while the server is away."""
        try:
            recorder.require_answer()
            deliver_left(workspace, server, recorder)
        except AwayError as error:
            self._go_away(error)

    @property
    def is_away(self) -> bool:
        """Whether calls are kept, not made."""
        return self._deliverer is not None

    def send(self, call: Call) -> None:
        """Makes a call, or keeps it.

        Raises:
            StorageError: the server refuses this call or one that was kept, or it cannot be kept.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if not self.is_away:
                try:
                    self._recorder.make(call)
                    return
                except AwayError as error:
                    self._keep([call])
                    self._go_away(error)
            else:
                self._keep([call])

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """The answer to a question to the server; None while it is away."""
        with self._lock:
            if self.is_away:
                return None
            try:
                return question()
            except AwayError as error:
                self._go_away(error)
                return None

    def close(self) -> None:
        """Tries once more to deliver; what is left is for the next run in the workspace.

        Raises:
            StorageError: the server refuses a call that was kept.
        """
        self._closing.set()
        if (deliverer := self._deliverer) is not None:
            deliverer.join()
        if self.is_away and self._refusal is None and not self._deliver():
            logger.info("%d calls to MLflow remain in %s", self._kept - self._delivered, self._folder.place())
        self._claim.close()
        if self._refusal is not None:
            raise self._refusal

    def _keep(self, calls: Sequence[Call]) -> None:
        if not self._claimed:
            # While it is held no other run takes what is kept for left over.
            self._claim.enter_context(held(self._workspace, _claim_name(self._name)))
            self._claimed = True
        if not self._kept:
            self._folder.write_json(_SERVER, {"server": self._server})
        self._log.append(calls)
        self._kept += len(calls)

    def _go_away(self, error: AwayError) -> None:
        """Says once that the server is away, keeps what is sent from now on, and waits for the server."""
        logger.warning(
            "%s. The run goes on: what it has to record is kept in %s, and delivered as soon as the server is back, "
            "or else by the next run in this workspace",
            error,
            self._folder.place(),
        )
        self._deliverer = threading.Thread(target=self._deliver_when_back, name="undelivered", daemon=True)
        self._deliverer.start()

    def _deliver_when_back(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.wait(pause_s):
            if self._deliver():
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _deliver(self) -> bool:
        """Makes the kept calls; whether there is nothing more to be tried."""
        try:
            self._recorder.require_answer()
            deliver_left(self._workspace, self._server, self._recorder)
            while True:
                for count, call in _joined(self._log.records()[self._delivered :]):
                    self._recorder.make(call)
                    self._delivered += count
                with self._lock:
                    if self._delivered == self._kept:
                        self._come_back()
                        return True
        except AwayError:
            return False
        except StorageError as error:
            self._refusal = error
            return True

    def _come_back(self) -> None:
        if self._kept:
            self._folder.delete("")
            logger.info("%s is back: all %d calls that were kept for it are delivered", self._server, self._kept)
        self._log = LineLog(self._folder, _CALLS)
        self._kept = self._delivered = 0
        self._deliverer = None


def is_left(workspace: Storage) -> bool:
    """Whether the workspace holds calls that were not delivered."""
    return bool(workspace.folders(UNDELIVERED))


def deliver_left(workspace: Storage, server: str, recorder: Recorder) -> None:
    """Makes the calls that earlier runs in the workspace have kept for ``server``, and removes them.

    Args:
        workspace: where they are kept.
        server: as it is named to the user; calls for other servers are left alone.
        recorder: makes the calls.

    Raises:
        AwayError: the server is away.
    """
    for name in workspace.folders(UNDELIVERED):
        folder = workspace.folder(UNDELIVERED, name)
        with held_if_free(workspace, _claim_name(name)) as claim:
            # Its run is still at it, or has delivered everything meanwhile.
            if claim is None or not folder.exists(_SERVER):
                continue
            try:
                meant_for = str(folder.read_json(_SERVER)["server"])
                calls = LineLog(folder, _CALLS).records()
                if meant_for != server:
                    logger.warning(
                        "%s holds %d calls to MLflow that were kept for %s: set MLFLOW_TRACKING_URI to it, or remove "
                        "the folder",
                        folder.place(),
                        len(calls),
                        meant_for,
                    )
                    continue
                for _, call in _joined(calls):
                    recorder.make(call)
                recorder.end_open(list(dict.fromkeys(str(call["run"]) for call in reversed(calls))))
            except AwayError:
                raise
            except (StorageError, ValueError, LookupError, TypeError, AttributeError) as error:
                logger.warning(
                    "what %s holds for MLflow cannot be delivered: %s. Remove the folder to give it up",
                    folder.place(),
                    error,
                )
                continue
            folder.delete("")
            logger.info("delivered %d calls to %s that an earlier run had kept", len(calls), server)


def _claim_name(name: str) -> str:
    return f"{UNDELIVERED}-{name}"


def _joined(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """The calls, neighbouring ones with points of one run as one call; each with how many it stands for."""
    waiting: list[Call] = []

    def joined() -> Call:
        return {**waiting[0], "points": [point for call in waiting for point in call["points"]]}

    for call in calls:
        fits = call["call"] == "metrics" and (not waiting or call["run"] == waiting[0]["run"])
        if waiting and (not fits or len(waiting) >= _JOINED_POINTS):
            yield len(waiting), joined()
            waiting = []
        if call["call"] == "metrics":
            waiting.append(call)
        else:
            yield 1, call
    if waiting:
        yield len(waiting), joined()
