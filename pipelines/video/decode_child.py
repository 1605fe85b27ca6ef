"""The decoding process: reads requests, answers with encoded frames, dies with its parent.

Started by ``decode_process`` as ``python -m pipelines.video.decode_child``; imports neither torch nor
Ray nor Arrow, so that it starts in about half a second.
"""

from __future__ import annotations

import ctypes
import io
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from PIL import Image

from pipelines.video.containers import frame_pixels
from pipelines.video.decoder import Decoder, DecoderChoice, Frame
from pipelines.video.decoders import PyAVDecoder, load_decoder, open_decoder
from pipelines.video.errors import FrameCountError, UnreadableVideoError, WrongTimesError, first_line
from pipelines.video.messages import Message, receive, send
from pipelines.video.sampling import sample_times
from pipelines.video.timeline import Note

MAX_ASPECT_RATIO = 16
"""Longer strips are refused: with a short side of 224 pixels, a frame of 16×10000 would have 94 MB."""

_BYTES_PER_PIXEL = 12
"""What a decoder needs at least: its own frames and their neighbours at 1.5 bytes, and one in RGB."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractSettings:
    """What to make of a video; see ``recipe.frames.FramesConfig`` for the meaning of the fields."""

    rate: float
    max_frames: int
    short_side_px: int
    decoder: DecoderChoice
    format: Literal["jpeg", "png"]
    jpeg_quality: int
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedVideo:
    """Encoded frames in temporal order, with their place in the source; see ``records.FRAMES``."""

    images: list[bytes]
    frame_index: list[int]
    time_s: list[float]
    height_px: int
    width_px: int
    source_fps: float
    source_frames: int
    source_begin_s: float
    decoder: str
    notes: str | None = None


class NoFramesError(Exception):
    """The wanted segment holds no frame."""


def extract(source: str | bytes, settings: ExtractSettings) -> ExtractedVideo:
    """Samples, decodes, resizes and encodes frames of the file at path ``source``, or of its bytes.

    Raises:
        UnreadableVideoError: the video cannot be decoded.
        NoFramesError: the segment lies outside the video.
    """
    decoder = open_decoder(source, settings.decoder)
    # Why another decoder reads: the next one's own notes are about the file alone.
    reasons = [note for note in decoder.notes if note not in decoder.timeline.notes]
    while True:
        try:
            return _extract(decoder, settings)
        except WrongTimesError as error:
            # First PyAV by its times, then PyAV that counts frames: it compares no times, so this error ends there.
            following = PyAVDecoder(source, trust_pts=decoder.name != "pyav")
            reasons.append(Note("wrong_times", first_line(error)))
        except UnreadableVideoError as error:
            if decoder.name not in ("torchcodec", "nvdec"):
                raise
            following = PyAVDecoder(source)
            because = f"read by PyAV, since {decoder.name} says: {first_line(error)}"
            reasons.append(Note(f"not_{decoder.name}", because))
        finally:
            decoder.close()
        following.notes += reasons
        decoder = following


def resize_short_side(image: Image.Image, size_px: int) -> Image.Image:
    """``image`` with its shorter side ``size_px`` long: bicubic, antialiased, as CLIP's evaluation transform."""
    # As hbi_models.clip.preprocessing does, which loads PyTorch; this process starts without it.
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short == size_px:
        return image
    # The transform truncates the long side; rounding would differ by a pixel.
    new_long = int(size_px * long / short)
    size = (size_px, new_long) if width <= height else (new_long, size_px)
    return image.resize(size, Image.Resampling.BICUBIC)


def main(arguments: list[str]) -> None:
    """Serves requests from standard input until it ends.

    Args:
        arguments: extra bytes of address space; process id of the parent, or 0 if its death
            cannot be watched by a signal; the decoder that will be asked for.
    """
    max_memory, parent = map(int, arguments[:2])
    requests, replies = os.dup(0), os.dup(1)
    _silence_standard_streams()
    _die_with(parent)
    # Before the limit is set, so that the limit counts videos, and neither libraries nor what CUDA reserves.
    load_decoder(cast("DecoderChoice", arguments[2]))
    _limit_memory(max_memory)
    # The kernel ends this process at its time limit: a decoder may hang while it holds the interpreter's lock, and the
    # parent may be gone.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for request in _requests(requests):
        signal.setitimer(signal.ITIMER_REAL, request.header["timeout_s"])
        reply = _serve(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, reply)


def _serve(request: Message) -> Message:
    source = request.blobs[0] if request.blobs else request.header["path"]
    try:
        video = extract(source, ExtractSettings(**request.header["settings"]))
    except UnreadableVideoError as error:
        return _too_large() if _memory_is_short(source) else _failure("undecodable", error)
    except NoFramesError as error:
        return _failure("no_frames", error)
    except MemoryError:
        return _too_large()
    header = asdict(video)
    images = header.pop("images")
    return Message({"video": header}, images)


def _memory_is_short(source: str | bytes) -> bool:
    """Whether memory is too small for frames of this size. Decoders report a failed allocation as invalid data."""
    try:
        bytearray(_BYTES_PER_PIXEL * frame_pixels(source))
    except UnreadableVideoError:
        return False
    except MemoryError:
        return True
    return False


def _too_large() -> Message:
    return _failure("memory", MemoryError("decoding needs more memory than frames.max_memory_gb allows"))


def _failure(reason: str, error: Exception) -> Message:
    return Message({"reason": reason, "message": first_line(error)})


def _extract(decoder: Decoder, settings: ExtractSettings) -> ExtractedVideo:
    count = len(decoder.timeline.times_s)
    try:
        return _extract_first(decoder, settings, count)
    except FrameCountError as error:
        # Now the true number of frames is known; sampling from it gives frames that exist.
        decoder.notes.append(Note("ends_early", f"{error}, and its headers announce {count}"))
        try:
            return _extract_first(decoder, settings, error.num_frames)
        except FrameCountError as again:
            raise UnreadableVideoError(first_line(again)) from again


def _extract_first(decoder: Decoder, settings: ExtractSettings, num_frames: int) -> ExtractedVideo:
    """Samples from the first ``num_frames`` frames of the file."""
    timeline = decoder.timeline
    whole = num_frames == len(timeline.times_s)
    times_s = timeline.times_s[:num_frames]
    # Where the stream ends early, its last frame stays until the next would have come.
    shown_s = timeline.end_s if whole else num_frames / timeline.rate if timeline.rate else timeline.times_s[num_frames]
    indices = sample_times(
        times_s,
        shown_s=shown_s,
        constant_fps=timeline.rate,
        max_frames=settings.max_frames,
        rate=settings.rate,
        # Segments are on the clock of the file, times of frames on that of its pictures.
        start_s=None if settings.start_s is None else settings.start_s - timeline.begin_s,
        end_s=None if settings.end_s is None else settings.end_s - timeline.begin_s,
    )
    if not indices:
        raise NoFramesError(
            f"no frame between {settings.start_s} and {settings.end_s} s: the video has {num_frames} frames, "
            f"{shown_s:.2f} s" + (f" from {timeline.begin_s:.2f} s on" if timeline.begin_s else "")
        )
    frames: list[tuple[int, float]] = []
    images = []
    size = (0, 0)
    for frame, image in _resized(decoder.frames(indices), settings.short_side_px):
        # A stream may change its size midway; the frames of a clip keep the first one's.
        size = size if frames else image.size
        images.append(_encode(image if image.size == size else image.resize(size), settings))
        frames.append((frame.index, frame.time_s))
    return ExtractedVideo(
        images=images,
        frame_index=[index for index, _ in frames],
        time_s=[time_s for _, time_s in frames],
        height_px=size[1],
        width_px=size[0],
        # Readers take source_frames / source_fps for the time that the video is shown.
        source_fps=timeline.fps if whole else num_frames / shown_s,
        source_frames=num_frames,
        source_begin_s=timeline.begin_s,
        decoder=decoder.name,
        notes="\n".join(f"{note.reason}: {note.message}" for note in decoder.notes) or None,
    )


def _resized(frames: Iterator[Frame], size_px: int) -> Iterator[tuple[Frame, Image.Image]]:
    for frame in frames:
        height, width, _ = frame.image.shape
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise UnreadableVideoError(
                f"frames of {width}×{height} pixels are longer than {MAX_ASPECT_RATIO} times their short side"
            )
        yield frame, resize_short_side(Image.fromarray(frame.image), size_px)


def _encode(image: Image.Image, settings: ExtractSettings) -> bytes:
    buffer = io.BytesIO()
    if settings.format == "jpeg":
        image.save(buffer, "JPEG", quality=settings.jpeg_quality)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _requests(file: int) -> Iterator[Message]:
    """Requests as they come; the end of input, also during a decode, ends the process."""
    waiting: queue.Queue[Message] = queue.Queue()

    def read() -> None:
        while True:
            try:
                waiting.put(receive(file))
            except EOFError:
                # In a thread, sys.exit would end the thread alone.
                os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def _silence_standard_streams() -> None:
    """Native libraries write to these streams about damaged files. Our messages use copies that were made before."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def _die_with(parent: int) -> None:
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before the line above took effect.
        os._exit(0)


def _limit_memory(extra: int) -> None:
    """Limits the address space to what is in use now and ``extra`` bytes; no limit outside Linux."""
    if not sys.platform.startswith("linux"):
        return
    # Linux enforces no limit on resident memory, so what is limited is address space.
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + extra
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main(sys.argv[1:])
