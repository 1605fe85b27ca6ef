"""A decoding process that can be killed: a video that hangs, crashes or takes too much memory costs only itself.

Decoders are native code fed with untrusted files. Inside the pipeline's own process a hang would
stop a Ray worker for ever (signals do not reach code that holds the interpreter's lock) and a
crash would take the worker's other videos with it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from pipelines.video.decode_child import ExtractedVideo, ExtractSettings
from pipelines.video.decoder import DecoderChoice, DecoderName
from pipelines.video.messages import DeadlineError, MalformedMessageError, Message, receive, send

Reason = Literal["missing", "undecodable", "no_frames", "timeout", "crash", "memory"]

START_TIMEOUT_S = 60.0
"""Seconds granted on top for the start of a process, which imports its libraries first."""


class ExtractionError(Exception):
    """A video gave no frames; ``reason`` is one of the words of ``records.ERRORS``."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DecodeProcess:
    """Owns one decoding process: started at the first video, reused, replaced after a failure.

    Args:
        timeout_s: seconds that one video may take.
        max_memory_gb: address space of the process on top of what it has after its start.
        decoder: the one that will be asked for, whose library the process loads at its start.
        command: what to start, for tests; it speaks the protocol of ``decode_child``.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        max_memory_gb: float,
        decoder: DecoderChoice = "auto",
        command: Sequence[str] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_memory = int(max_memory_gb * 1e9)
        self._command = list(command or (sys.executable, "-m", "pipelines.video.decode_child"))
        self._decoder = decoder
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., object] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Id of the running process, if there is one."""
        return None if self._process is None else self._process.pid

    def extract(self, source: str | bytes, settings: ExtractSettings) -> ExtractedVideo:
        """Frames of the file at path ``source``, or of its bytes.

        Raises:
            ExtractionError: there are none; the next video can be decoded all the same.
        """
        # The process also limits itself, a second later, for the case that this one dies.
        header = {"settings": asdict(settings), "timeout_s": self._timeout_s + 1}
        request = Message({**header, "path": source}) if isinstance(source, str) else Message(header, [source])
        # Threads may share the process, which answers one request at a time.
        with self._lock:
            reused = self._process is not None
            try:
                reply = self._ask(request)
            except ExtractionError as error:
                if error.reason != "crash" or not reused:
                    raise
                # An earlier video may have damaged the process; a fresh one shows whether this video is the cause.
                reply = self._ask(request)
        reason: Reason | None = next((word for word in get_args(Reason) if word == reply.header.get("reason")), None)
        if reason is not None:
            if reason == "memory":
                # The state of native code after a failed allocation is unknown.
                self.close()
            raise ExtractionError(reason, str(reply.header.get("message")))
        try:
            return _checked_video(reply)
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise ExtractionError("crash", f"the decoding process answered with nonsense: {error}") from error

    def close(self) -> None:
        """Ends the process; the next video starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _ask(self, request: Message) -> Message:
        starting = self._process is None
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + self._timeout_s + (START_TIMEOUT_S if starting else 0)
        try:
            send(process.stdin.fileno(), request, deadline=deadline)
            # The process cannot send more than its memory holds.
            return receive(process.stdout.fileno(), deadline=deadline, max_blob_bytes=self._max_memory)
        except DeadlineError:
            self.close()
            raise ExtractionError(
                "timeout", f"decoding took longer than frames.timeout_s = {self._timeout_s:g} s"
            ) from None
        except MalformedMessageError as error:
            self.close()
            raise ExtractionError("crash", f"the decoding process answered with nonsense: {error}") from error
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.close()
            if code == -signal.SIGALRM:
                raise ExtractionError(
                    "timeout", f"decoding took longer than frames.timeout_s = {self._timeout_s:g} s"
                ) from None
            raise ExtractionError("crash", f"the decoding process ended with {_describe(code)}") from None
        except BaseException:
            # An interrupted exchange leaves half a message behind.
            self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        # Linux sends this signal when the thread that started the child ends, so only the main thread asks for it.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        # The process runs the code that this one does, wherever that lies.
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(  # noqa: S603 - our own module, or what a test gives
            [*self._command, str(self._max_memory), str(parent), self._decoder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                # Else -m puts the working folder first on the path, where a file could stand in for a library.
                "PYTHONSAFEPATH": "1",
                # OpenBLAS would start a thread for each core as soon as NumPy loads it.
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                # It decodes on the first GPU that it sees.
                **({"CUDA_VISIBLE_DEVICES": _own_gpu()} if self._decoder == "nvdec" else {}),
            },
        )
        assert process.stdin is not None
        # Else a write of more than the pipe holds would wait beyond the deadline.
        os.set_blocking(process.stdin.fileno(), False)
        self._process, self._finalizer = process, weakref.finalize(self, _end, process)
        return process


def _own_gpu() -> str:
    """The name of the GPU that this process may use; empty if it may use none, such as a worker that Ray gave none."""
    from pipelines.resources.device import compute_device  # loads PyTorch

    device = compute_device()
    if device.type == "cpu":
        return ""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names[device.index] if names else str(device.index)


def _checked_video(reply: Message) -> ExtractedVideo:
    """The video in a reply, every field of which fits ``records.FRAMES``; otherwise ``TypeError`` or ``ValueError``.

    A process that a damaged file has corrupted may answer anything, and the answers of a whole
    shard are written together.
    """
    video = ExtractedVideo(images=list(reply.blobs), **reply.header["video"])
    whole: list[Any] = [*video.frame_index, video.height_px, video.width_px, video.source_frames]
    real: list[Any] = [*video.time_s, video.source_fps, video.source_begin_s]
    if any(type(number) is not int or not 0 <= number < 1 << 31 for number in whole):
        raise ValueError("an index, a size or a count is out of range")
    if any(type(number) not in (int, float) or not math.isfinite(number) for number in real):
        raise ValueError("a time or a rate is not a finite number")
    if not len(video.images) == len(video.frame_index) == len(video.time_s) > 0:
        raise ValueError("there are not as many images as indices and times")
    if video.decoder not in get_args(DecoderName):
        raise ValueError("the decoder is unknown")
    if video.notes is not None and not isinstance(video.notes, str):
        raise TypeError("the notes are not a text")
    return video


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
