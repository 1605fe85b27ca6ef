"""Errors of decoding a video, and their messages."""

from __future__ import annotations

import errno
import re

_LOG_PREFIX = re.compile(r"^(\[[\d:]+\] )?(/\S+:\d+: )?")
"""What decord puts before its messages: a time and a path of the machine that built it."""


class UnreadableVideoError(Exception):
    """The video cannot be decoded; the message is one line."""


class FrameCountError(Exception):
    """The stream ended early without an error: it has ``num_frames`` frames, fewer than announced."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(f"the stream has only {num_frames} frames")
        self.num_frames = num_frames


class WrongTimesError(Exception):
    """A decoder returned frames that are shown at other times than those asked for."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its time stamp and source file, or the error's type."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return _LOG_PREFIX.sub("", text.splitlines()[0])[:300] if text else type(error).__name__


class reading:  # noqa: N801 - reads as a statement
    """Turns what libraries raise about a damaged file into ``UnreadableVideoError``."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        passed_on = (UnreadableVideoError, FrameCountError, WrongTimesError, MemoryError)
        # Under a limit on memory, threads that get no stack report "try again", and libraries fail to load.
        out_of_memory = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN)
        if out_of_memory or isinstance(error, ImportError):
            raise MemoryError from error
        # decord's errors derive from Exception alone, so no narrower class covers them.
        if isinstance(error, Exception) and not isinstance(error, passed_on):
            raise UnreadableVideoError(first_line(error)) from error
