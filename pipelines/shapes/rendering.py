"""Draws a generated clip, all frames of an event at once, and encodes it as H.264."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.events import Colour, Event, Motion, Script, Shape

_RENDERING_STREAM = 3
"""Second number of the random seed, so that appearance is drawn independently of the events."""

_RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "green": (30, 185, 50),
    "blue": (45, 80, 245),
    "yellow": (240, 220, 30),
    "pink": (250, 110, 200),
    "white": (245, 245, 245),
}

_TRAVEL: dict[Motion, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
"""Axis (0 = x to the right, 1 = y downwards) and sign of a travel."""

Pixels = NDArray[np.float32]

Distance = Callable[[Pixels, Pixels, Pixels], Pixels]
"""Signed distance in pixels to a shape's outline, negative inside, from x, y and radius."""


def render_clip(config: ShapesConfig, script: Script) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames of ``script`` in RGB, with antialiased outlines."""
    rng = np.random.default_rng([config.seed, _RENDERING_STREAM, script.number])
    size = config.image_size_px
    background = _draw_background(size, rng)
    video = np.empty((script.num_frames, size, size, 3), np.uint8)
    video[:] = np.rint(background)
    for event in script.events:
        coverage = _draw_object(event, size, rng)[..., None]
        colour = np.asarray(_RGB[event.triple.colour], np.float32) * np.float32(rng.uniform(0.9, 1.0))
        picture = background + coverage * (colour - background)
        video[event.visible_start : event.visible_end] = np.rint(picture)
    return video


def encode_mp4(
    frames: UInt8[np.ndarray, "frames height width 3"], fps: float, *, options: dict[str, str] | None = None
) -> bytes:
    """An H.264 file of RGB ``frames``; the same bytes on every call.

    ``options`` go to x264; the default is its fastest preset at a quality without visible loss.
    """
    buffer = io.BytesIO()
    # Without "bitexact" the file would name the version of FFmpeg that wrote it.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # FFmpeg keeps rates in two numbers of 32 bits, too few for the fraction of a float; 30000/1001 stays exact.
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001 * 120))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        # Threads would cost more to start than a small clip takes, and change the output with their number.
        stream.codec_context.thread_count = 1
        stream.options = options or {"preset": "ultrafast", "crf": "16"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _draw_background(size: int, rng: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """A dark, slightly tinted gradient with soft blotches, so that every colour stands out."""
    base = rng.uniform(15, 60) + rng.uniform(-12, 12, size=3)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    waves = (
        np.sin(rng.uniform(1, 4) * axis + rng.uniform(0, 6))[None, :]
        * np.sin(rng.uniform(1, 4) * axis + rng.uniform(0, 6))[:, None]
    )
    shade = rng.uniform(0, 12) * slope + rng.uniform(0, 10) * waves
    picture: Pixels = np.clip(base + shade[..., None], 0, 90).astype(np.float32)
    return picture


def _draw_object(event: Event, size: int, rng: np.random.Generator) -> Float[np.ndarray, "frames height width"]:
    """How much of each pixel the object covers, 0 to 1, in the frames where it is visible."""
    x, y, radius, tilt = _draw_path(event, size, rng)
    # At the centres of the pixels.
    grid = np.arange(size, dtype=np.float32) + 0.5
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    cosine, sine = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    distance = _DISTANCES[event.triple.shape](
        cosine * dx + sine * dy, cosine * dy - sine * dx, radius[:, None, None].astype(np.float32)
    )
    # A pixel whose centre lies on the outline is half covered: that is the antialiasing.
    coverage: Pixels = np.clip(np.float32(0.5) - distance, 0, 1)
    return coverage


def _draw_path(event: Event, size: int, rng: np.random.Generator) -> tuple[Pixels, Pixels, Pixels, float]:
    """Centre and radius in pixels in each visible frame, and the tilt in radians."""
    motion = event.triple.motion
    progress = np.linspace(0, 1, event.visible_end - event.visible_start, dtype=np.float32)
    centre = rng.uniform(0.38, 0.62, size=(2, 1)) + np.zeros_like(progress)
    radius = np.full_like(progress, rng.uniform(0.2, 0.25))
    if motion in _TRAVEL:
        axis, sign = _TRAVEL[motion]
        centre[axis] = 0.5 + sign * rng.uniform(0.4, 0.52) * (progress - 0.5)
    elif motion in ("grow", "shrink"):
        small, large = rng.uniform(0.08, 0.11), rng.uniform(0.28, 0.33)
        radius = small + (large - small) * (progress if motion == "grow" else 1 - progress)
    x, y = (size * centre).astype(np.float32)
    return x, y, (size * radius).astype(np.float32), float(rng.uniform(-0.15, 0.15))


def _circle(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    distance: Pixels = np.hypot(x, y) - radius
    return distance


def _square(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    # About the area of the circle.
    distance: Pixels = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88) * radius
    return distance


def _triangle(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    # Pointing up. With its corners on the circle it would have 0.41 of the circle's area; it is drawn larger, to 0.6.
    sides = np.float32(np.sqrt(3) / 2) * np.abs(x) - np.float32(0.5) * y
    distance: Pixels = np.maximum(sides, y) - np.float32(0.6) * radius
    return distance


def _star(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    # One edge of a five-pointed star, repeated by folding the angle measured from a tip.
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    folded = np.abs(angle - sector * np.rint(angle / sector))
    length = np.hypot(x, y)
    along, across = length * np.cos(folded), length * np.sin(folded)
    inner_x, inner_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    edge = np.hypot(1.15 - inner_x, inner_y)
    normal_x, normal_y = np.float32(inner_y / edge), np.float32((1.15 - inner_x) / edge)
    distance: Pixels = normal_x * (along - np.float32(1.15) * radius) + normal_y * across
    return distance


def _cross(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    x, y, arm = np.abs(x), np.abs(y), np.float32(0.33) * radius
    # Two bars: the nearer one counts.
    distance: Pixels = np.minimum(np.maximum(x - radius, y - arm), np.maximum(x - arm, y - radius))
    return distance


def _ring(x: Pixels, y: Pixels, radius: Pixels) -> Pixels:
    distance: Pixels = np.abs(np.hypot(x, y) - np.float32(0.8) * radius) - np.float32(0.22) * radius
    return distance


_DISTANCES: dict[Shape, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
