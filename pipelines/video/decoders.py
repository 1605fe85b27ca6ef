"""Two video decoders behind one small interface, and the choice between them.

decord 0.6 (its last release) is right for the common codecs in MP4, Matroska, WebM and FLV, rotation
metadata included: there the two return the same pixels. Without saying so it returns wrong frames
where the container has no dependable times (AVI, MPEG, WMV), for MPEG-4 Part 2 with B-frames, and
where an edit list cuts frames off; AV1 it does not read. A look at the container, without decoding,
finds these files, and PyAV reads them, as it does those with frames of a few narrow widths, which decord
returns with the padding of their lines.
"""

from __future__ import annotations

import errno
import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import av
import av.error
import numpy as np
from jaxtyping import UInt8

DecoderName = Literal["decord", "pyav"]

MAX_PIXELS = 8192 * 8192
"""Larger frames are refused before they are allocated: 192 MiB in RGB, twice the area of 8K."""

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,asf,ogg,h264,hevc,gif,nut,ivf"
"""Formats that may be opened. Playlists (HLS, DASH, concat) are not among them: a file of the data
set must not make the decoder open other files or addresses."""

_UNDECODABLE_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if av.__version__.startswith("18.") else {}
"""Titles and comments that are not UTF-8 are no reason to refuse a video. PyAV 18 must be told; 19 takes them as they
are and knows no such argument."""

_LOG_PREFIX = re.compile(r"^(\[[\d:]+\] )?(/\S+:\d+: )?")
"""What decord puts before its messages: a time and a path of the machine that built it."""

_TIMED_CONTAINERS = frozenset({"mov", "matroska", "flv"})
"""Formats that say for each frame when it is shown, by the first of their FFmpeg names."""

_DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "h263"})
"""Codecs whose frames decord returns exactly, in the formats above."""

_SEEK_GAIN_FRAMES = 8
"""A seek costs about as much as decoding this many frames."""


class UnreadableVideoError(Exception):
    """The video cannot be decoded; the message is one line."""


class FrameCountError(Exception):
    """The stream ended early without an error: it has ``num_frames`` frames, fewer than announced."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(f"the stream has only {num_frames} frames")
        self.num_frames = num_frames


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame, upright; ``time_s`` is its presentation time after the first frame's."""

    index: int
    time_s: float
    image: UInt8[np.ndarray, "height width 3"]


class Decoder(Protocol):
    """An open video."""

    name: DecoderName
    fps: float
    """Average frames per second."""

    num_frames: int
    """Frames shown, as far as known before decoding."""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, which increase strictly, decoding no more than needed.

        Raises:
            FrameCountError: the stream has fewer frames than ``num_frames``.
            UnreadableVideoError: the stream is damaged.
        """
        ...

    def close(self) -> None:
        """Frees the file and the decoder's buffers."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """What a container says of its video stream."""

    container: str
    """The first of FFmpeg's names of the format."""

    codec: str
    pixels: int
    """Of a frame, before anything turns it."""
    edited: bool
    """An edit list shows other frames than the file holds."""

    @property
    def decord_reads_it(self) -> bool:
        """Whether decord returns the right frames."""
        return not self.edited and self.container in _TIMED_CONTAINERS and self.codec in _DECORD_CODECS


def open_decoder(source: str | bytes, choice: Literal["auto", "decord", "pyav"] = "auto") -> Decoder:
    """Opens the file at path ``source``, or the file's bytes, with the right decoder.

    Raises:
        UnreadableVideoError: it is not a video that the chosen decoders read.
    """
    probe = probe_video(source)
    if choice == "pyav" or (choice == "auto" and not probe.decord_reads_it):
        return PyAVDecoder(source)
    try:
        return DecordDecoder(source)
    except UnreadableVideoError:
        if choice == "decord":
            raise
        return PyAVDecoder(source)


def probe_video(source: str | bytes) -> Probe:
    """What the container of ``source`` says; nothing is decoded.

    Raises:
        UnreadableVideoError: it is no video, or its frames are larger than ``MAX_PIXELS``.
    """
    with _reading(), _open_container(source) as container:
        stream = _video_stream(container)
        shown = sum(not entry.is_discard for entry in stream.index_entries)
        name = _format_name(container)
        # Only the MP4 family counts its frames in the header, and only it has edit lists.
        edited = name == "mov" and stream.frames > 0 and shown not in (0, stream.frames)
        pixels = stream.codec_context.width * stream.codec_context.height
        return Probe(container=name, codec=stream.codec.canonical_name, pixels=pixels, edited=edited)


class DecordDecoder:
    """decord, one thread."""

    name: DecoderName = "decord"

    def __init__(self, source: str | bytes) -> None:
        # Imported here: it has no wheel for some machines, and PyAV then reads everything.
        try:
            import decord
        except (ImportError, OSError) as error:
            raise UnreadableVideoError(f"decord cannot be loaded: {first_line(error)}") from error
        with _reading():
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            self._reader: Any = decord.VideoReader(file, num_threads=1)
            self.fps = float(self._reader.get_avg_fps())
            self.num_frames = len(self._reader)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, see ``Decoder``."""
        for index, time_s in zip(indices, self._times_s(indices), strict=True):
            # One at a time: a batch of large frames would need many times the memory of the result.
            with _reading():
                image: UInt8[np.ndarray, "height width 3"] = self._reader[index].asnumpy()
            if image.shape[2] != 3:
                # It divides the bytes of a line by the width: of narrow frames the padding becomes channels.
                raise UnreadableVideoError(f"decord returns frames {image.shape[1]} pixels wide with their padding")
            yield Frame(index, time_s, image)

    def close(self) -> None:
        """Frees the reader, which otherwise keeps frames buffered."""
        self._reader = None

    def _times_s(self, indices: Sequence[int]) -> list[float]:
        with _reading():
            starts = self._reader.get_frame_timestamp([0, *indices])[:, 0].astype(np.float64)
        times = starts[1:] - starts[0]
        # Without presentation times in the file it gives huge numbers; then the rate tells.
        if not np.all((times >= 0) & (times <= 10 * self.num_frames / self.fps)):
            times = np.asarray(indices) / self.fps
        # The times are single precision: digits after the sixth mean nothing.
        return [round(time, 6) for time in times.tolist()]


class PyAVDecoder:
    """FFmpeg through PyAV, one thread; knows the shown frames from the packets' headers."""

    name: DecoderName = "pyav"

    def __init__(self, source: str | bytes) -> None:
        self._source = source
        with _reading():
            self._open()
            self._times, self._keyframes, self.num_frames = self._index()
            # The packets are read; the file is opened anew, as not every format can go back.
            self._open()
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or not self.num_frames:
            raise UnreadableVideoError("the stream has no frames or no frame rate")
        self.fps = float(rate)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, see ``Decoder``."""
        for index in indices:
            with _reading():
                found, frame = self._first_frame_from(index)
                image = frame.to_ndarray(format="rgb24")
            if frame.rotation % 360:
                image = np.rot90(image, round(frame.rotation / 90))
            yield Frame(found, self._time_s(found), np.ascontiguousarray(image))

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _index(self) -> tuple[list[int] | None, list[int], int]:
        """Presentation times of the shown frames in order, positions of key frames, number of frames.

        Reads all packets but decodes none. Without dependable times there are none, and frames
        are counted as they come.
        """
        shown: list[tuple[int | None, bool]] = []
        num_packets = 0
        for packet in self._container.demux(self._stream):
            if packet.size == 0 or packet.is_corrupt:
                continue
            num_packets += 1
            if not packet.is_discard:
                shown.append((packet.pts, packet.is_keyframe))
        announced = min(self._stream.frames, len(self._stream.index_entries))
        if num_packets < announced:
            raise UnreadableVideoError(f"the file is cut off: it holds {num_packets} of {announced} frames")
        timed = sorted((time, keyframe) for time, keyframe in shown if time is not None)
        times = [time for time, _ in timed]
        if _format_name(self._container) not in _TIMED_CONTAINERS or len(set(times)) < len(shown):
            return None, [], len(shown)
        return times, [position for position, (_, keyframe) in enumerate(timed) if keyframe], len(shown)

    def _open(self) -> None:
        """Opens the file, or opens it again, at its first frame."""
        self._container: Any = _open_container(self._source)
        self._stream = _video_stream(self._container)
        self._decoded = self._container.decode(self._stream)
        self._position = 0

    def _seek(self, keyframe: int, times: Sequence[int]) -> None:
        self._container.seek(times[keyframe], stream=self._stream)
        self._decoded = self._container.decode(self._stream)
        self._position = keyframe

    def _first_frame_from(self, index: int) -> tuple[int, Any]:
        """The next frame at ``index`` or, where a packet shows nothing, after it; with its position."""
        keyframe = max((0, *self._keyframes[: bisect_right(self._keyframes, index)]))
        if self._times is not None and keyframe - self._position > _SEEK_GAIN_FRAMES:
            self._seek(keyframe, self._times)
        for frame in self._decoded:
            position = self._position
            if self._times is not None and frame.pts is not None:
                position = bisect_right(self._times, frame.pts) - 1
            self._position = position + 1
            if position >= index:
                return position, frame
        raise FrameCountError(self._position)

    def _time_s(self, index: int) -> float:
        if self._times is None:
            return index / self.fps
        return float((self._times[index] - self._times[0]) * self._stream.time_base)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its time stamp and source file, or the error's type."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return _LOG_PREFIX.sub("", text.splitlines()[0])[:300] if text else type(error).__name__


class _reading:  # noqa: N801 - reads as a statement
    """Turns what libraries raise about a damaged file into ``UnreadableVideoError``."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        passed_on = (UnreadableVideoError, FrameCountError, MemoryError)
        # Under a limit on memory, threads that get no stack report "try again", and libraries fail to load.
        out_of_memory = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN)
        if out_of_memory or isinstance(error, ImportError):
            raise MemoryError from error
        # decord's errors derive from Exception alone, so no narrower class covers them.
        if isinstance(error, Exception) and not isinstance(error, passed_on):
            raise UnreadableVideoError(first_line(error)) from error


def _open_container(source: str | bytes) -> Any:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    container = av.open(file, options={"format_whitelist": CONTAINERS}, **_UNDECODABLE_METADATA)
    for stream in container.streams.video:
        if stream.codec_context is None:
            raise UnreadableVideoError("the codec of the video is unknown")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def _format_name(container: Any) -> str:
    return str(container.format.name).partition(",")[0]


def _video_stream(container: Any) -> Any:
    """The first stream that is not a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                size = f"{stream.codec_context.width}×{stream.codec_context.height}"
                raise UnreadableVideoError(
                    f"frames of {size} pixels are larger than the limit of {MAX_PIXELS:,} pixels"
                )
            return stream
    raise UnreadableVideoError("the file has no video stream")
