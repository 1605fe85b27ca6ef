"""Progress with a rate and an ETA: a bar on a terminal, lines in the log.

Every stage reports its progress through :class:`Progress`, so that a terminal, a log file and ``ray job logs`` show the
same thing.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger("progress")


class Progress:
    """Counts finished units of a stage's work.

    Args:
        name: the stage.
        total: units in all.
        unit: what is counted, in the plural.
        done: units that an earlier run finished.
        log_every_s: seconds between two lines in the log.
    """

    def __init__(self, name: str, *, total: int, unit: str, done: int = 0, log_every_s: float = 10.0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._log_every_s = log_every_s
        self._done = done
        self._logged = time.monotonic()
        # Where the rate is measured from: (time, units).
        self._start = self._first = (self._logged, done)
        self._has_advanced = False
        self._note = ""
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit=f" {unit}", disable=not sys.stderr.isatty(), leave=False
        )

    def __enter__(self) -> Progress:
        if self._done:
            logger.info("%s: %s of %s %s were done before", self.name, f"{self._done:,}", f"{self.total:,}", self.unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if kind is None:
            self._log()

    def advance_to(self, done: int, note: str = "") -> None:
        """``done`` units are finished; ``note`` says more, such as the last loss."""
        self.advance(done - self._done, note)

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more are finished."""
        self._done += units
        if not self._has_advanced and units:
            self._first = (time.monotonic(), self._done)
            self._has_advanced = True
        self._note = note or self._note
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(units)
        if time.monotonic() - self._logged >= self._log_every_s:
            self._log()

    def expect(self, total: int) -> None:
        """There are ``total`` units in all, more or less than was known before."""
        self.total = self._bar.total = total

    def line(self) -> str:
        """``frames: 400/1,200 videos, 20/s, 40 s left`` with the last note."""
        rate = self._rate(time.monotonic())
        left = (
            f", {format_seconds((self.total - self._done) / rate)} left" if rate > 0 and self._done < self.total else ""
        )
        pace = f"{rate:.3g}/s" if rate >= 0.1 or rate == 0 else f"{60 * rate:.3g}/min"
        note = f", {self._note}" if self._note else ""
        return f"{self.name}: {self._done:,}/{self.total:,} {self.unit}, {pace}{left}{note}"

    def _log(self) -> None:
        self._logged = time.monotonic()
        logger.info("%s", self.line())

    def _rate(self, now: float) -> float:
        """Units per second since the first ones came, because starting workers and loading models happens only once."""
        started, before = self._start
        if self._has_advanced and self._done > self._first[1]:
            started, before = self._first
        return (self._done - before) / max(now - started, 1e-9)


def format_seconds(seconds: float) -> str:
    """``seconds`` as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
