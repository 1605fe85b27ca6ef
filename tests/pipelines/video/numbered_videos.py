"""Videos whose frames show their own number, so that what a decoder returns can be told without another decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS, DARK, BRIGHT = 12, 30, 220
Change = Callable[[int, Any], Any]


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Twelve upright bars, the lowest bit on the left, below a black edge and above a white one."""
    bars = np.repeat([(number >> bit) & 1 for bit in range(BITS)], width // BITS)
    image = np.where(np.pad(bars, (0, width - len(bars)), "edge"), BRIGHT, DARK).astype(np.uint8)
    image = np.tile(image[None, :, None], (height, 1, 3))
    image[: height // 8], image[-(height // 8) :] = DARK, BRIGHT
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a picture of any size shows."""
    height, width = image.shape[:2]
    places = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    middle = image[height // 4 : max(height // 4 + 1, 3 * height // 4)].mean(axis=(0, 2))
    seen = [middle[max(0, place - 1) : place + 2].mean() > (DARK + BRIGHT) / 2 for place in places]
    return int(np.dot(seen, 2 ** np.arange(BITS)))


def write_numbered(
    path: Path,
    times_s: Sequence[float],
    *,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    fps: Fraction | int = 10,
    unit: Fraction = Fraction(1, 1000),
    size: tuple[int, int] = (96, 64),
    form: str | None = None,
    container_options: Mapping[str, str] | None = None,
    degrees: int = 0,
    hflip: bool = False,
    vflip: bool = False,
    begin_s: float = 0.0,
    change: Change | None = None,
    before: Callable[[Any], Callable[[], None]] | None = None,
    is_default: bool | None = None,
) -> Path:
    """Frame n is shown at ``begin_s + times_s[n]``.

    Args:
        path: of the file; its suffix says the format where ``form`` does not.
        times_s: of the frames.
        codec: FFmpeg's name of the encoder, with its ``options``.
        options: of the encoder.
        fps: nominal rate.
        unit: of the encoder's times, in seconds.
        size: width and height.
        form: FFmpeg's name of the format, with its ``container_options``.
        container_options: of the format.
        degrees: of rotation, with ``hflip`` and ``vflip``, in the display matrix.
        hflip: mirrored left to right.
        vflip: mirrored top to bottom.
        begin_s: time of the first frame.
        change: makes another packet, or none, of a packet and its number.
        before: adds streams in front and returns what writes them.
        is_default: whether the file marks the stream as the default one.
    """
    with av.open(str(path), "w", format=form, options=dict(container_options or {})) as container:
        finish = before(container) if before else None
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        if is_default is not None:
            stream.disposition = av.stream.Disposition(av.stream.Disposition.default if is_default else 0)
        if degrees or hflip or vflip:
            stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        if finish:
            finish()
        packets = encoded(stream, times_s, size=size, unit=unit, begin_s=begin_s)
        for number, packet in enumerate(packets):
            changed = change(number, packet) if change else packet
            if changed is not None:
                changed.stream = stream
                container.mux(changed)
    return path


def encoded(
    stream: Any, times_s: Sequence[float], *, size: tuple[int, int], unit: Fraction, begin_s: float = 0.0
) -> list[Any]:
    """Packets of the numbered frames."""
    packets: list[Any] = []
    for number, time_s in enumerate(times_s):
        frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
        frame.pts, frame.time_base = round((time_s + begin_s) / unit), unit
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]
