"""Work in a thread that can be stopped as Ctrl-C stops the main one."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from threading import Thread

logger = logging.getLogger(__name__)

_STOP_S = 30.0
"""Longest time to wait until stopped work has released what it holds: code that is not Python ends first."""


class StoppableThread(Thread):
    """Begins ``work`` at once."""

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        # A daemon, because Python waits for all other threads when it exits.
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error

    def result(self) -> None:
        """Waits for the end of the work, and raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Raises ``KeyboardInterrupt`` in the work, and waits until that has cleaned up."""
        if not self.is_alive():
            return
        # Python has no other call for it. Unlike a flag, it ends work that does not ask, in the way of the main thread.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(KeyboardInterrupt))
        self.join(_STOP_S)
        if self.is_alive():
            logger.warning("%s: the work did not end within %g s, and ends with this process", self.name, _STOP_S)
