"""Opening video files that nobody has checked: which formats, and which stream."""

from __future__ import annotations

import io
from typing import Any

import av
import av.error

from pipelines.video.errors import UnreadableVideoError, reading

MAX_PIXELS = 8192 * 8192
"""Larger frames are refused before they are allocated: 192 MiB in RGB, twice the area of 8K."""

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,asf,ogg,h264,hevc,gif,nut,ivf"
"""Formats that may be opened. Playlists (HLS, DASH, concat) are not among them: a file of the data
set must not make the decoder open other files or addresses."""

_UNDECODABLE_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if av.__version__.startswith("18.") else {}
"""Titles and comments that are not UTF-8 are no reason to refuse a video. PyAV 18 must be told; 19 takes them as they
are and knows no such argument."""


def open_container(source: str | bytes, *, as_stored: bool = False) -> Any:
    """The file at path ``source``, or the file's bytes, opened; every video stream decodes in this thread.

    ``as_stored``: packets are returned as in the file; FFmpeg's parsers do not split or join them to pictures.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    options = {"format_whitelist": CONTAINERS, **({"fflags": "+noparse+nofillin"} if as_stored else {})}
    container = av.open(file, options=options, **_UNDECODABLE_METADATA)
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
            # A stream may grow midway, which the size in its header, checked below, does not tell.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def format_name(container: Any) -> str:
    """The first of FFmpeg's names of the format."""
    return str(container.format.name).partition(",")[0]


def moving_streams(container: Any) -> list[Any]:
    """The streams of moving pictures: neither covers nor previews."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def video_stream(container: Any) -> Any:
    """The stream that is decoded: of those the file marks as default the largest, else the largest; then the first.

    Raises:
        UnreadableVideoError: there is none with a known codec, or its frames are larger than ``MAX_PIXELS``.
    """
    streams = moving_streams(container)
    # PyAV has no context for a stream that FFmpeg has no decoder for.
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise UnreadableVideoError("the codec of the video is unknown" if streams else "the file has no video stream")
    # Of equals, max returns the first.
    stream = max(known, key=lambda stream: (bool(stream.disposition & av.stream.Disposition.default), _pixels(stream)))
    if _pixels(stream) > MAX_PIXELS:
        size = f"{stream.codec_context.width}×{stream.codec_context.height}"
        raise UnreadableVideoError(f"frames of {size} pixels are larger than the limit of {MAX_PIXELS:,} pixels")
    return stream


def frame_pixels(source: str | bytes) -> int:
    """Pixels of a frame of the stream that is decoded; nothing is decoded.

    Raises:
        UnreadableVideoError: it is no video, or its frames are larger than ``MAX_PIXELS``.
    """
    with reading(), open_container(source) as container:
        return _pixels(video_stream(container))


def _pixels(stream: Any) -> int:
    return int(stream.codec_context.width * stream.codec_context.height)
