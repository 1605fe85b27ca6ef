"""Perturbations of a clip's stored frames at three strengths, to measure how robust a model is.

Each is a function of the frames, the strength (1 to 3) and a generator; it may return fewer frames, never none.
For a person, strength 1 is slight, 2 is clear, and 3 makes the clip hard to recognise; ``LEVELS`` has the amounts.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from hbi_models.config_fields import require
from pipelines.video.image_operations import FILL, brightness, color, contrast, each

Frames = UInt8[np.ndarray, "frames height width 3"]

STRENGTHS = (1, 2, 3)

LEVELS: Mapping[str, tuple[float, float, float]] = {
    "blur": (1 / 64, 1 / 32, 1 / 16),  # deviation of the Gaussian, of the short side
    "dark": (0.5, 0.25, 0.1),  # factor of the brightness
    "bright": (1.5, 2.5, 4.0),
    "low contrast": (0.5, 0.25, 0.1),  # factor around the mean grey
    "grey": (0.5, 0.2, 0.0),  # what is left of the colour
    "noise": (10.0, 25.0, 50.0),  # deviation in levels of 255
    "jpeg": (30, 10, 3),  # quality
    "pixelate": (2, 4, 8),  # side of a block in pixels of 64; of larger pictures in proportion
    "occlude": (1 / 8, 1 / 4, 1 / 2),  # part of the area behind a grey square
    "drop frames": (0.25, 0.5, 0.75),  # part of the frames that is missing
    "reverse": (1 / 3, 2 / 3, 1.0),  # part of the frames, the last ones, in reversed order
    "shuffle": (2, 4, 0),  # frames that change places among each other; 0 = all
}
"""The amount of each perturbation at strengths 1, 2 and 3."""


def perturb(frames: Frames, name: str, strength: int, video_id: str) -> Frames:
    """``frames`` with a perturbation, the same for this video on every machine; the input is not modified.

    Raises:
        ValueError: there is no such perturbation or strength.
    """
    require(name in LEVELS, f"there is no perturbation {name!r}; there are: {', '.join(LEVELS)}")
    require(strength in STRENGTHS, f"strength is {strength}; it must be one of {STRENGTHS}")
    seed = hashlib.sha256(f"{name}\n{strength}\n{video_id}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    return _PERTURBATIONS[name](frames, LEVELS[name][strength - 1], generator)


def _blur(frames: Frames, deviation: float, generator: np.random.Generator) -> Frames:
    radius = deviation * min(frames.shape[1:3])
    return each(frames, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def _noise(frames: Frames, deviation: float, generator: np.random.Generator) -> Frames:
    noisy = frames + generator.normal(0, deviation, frames.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _jpeg(frames: Frames, quality: float, generator: np.random.Generator) -> Frames:
    def through_file(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file).convert("RGB")

    return each(frames, through_file)


def _pixelate(frames: Frames, block: float, generator: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    side = max(block * min(height, width) / 64, 1)
    # PIL takes the width first.
    small = max(round(width / side), 1), max(round(height / side), 1)
    return each(
        frames,
        lambda image: image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST),
    )


def _occlude(frames: Frames, area: float, generator: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    down, across = (max(round(size * area**0.5), 1) for size in (height, width))
    top, left = int(generator.integers(height - down + 1)), int(generator.integers(width - across + 1))
    covered = frames.copy()
    covered[:, top : top + down, left : left + across] = FILL
    return covered


def _drop(frames: Frames, part: float, generator: np.random.Generator) -> Frames:
    kept = max(round(len(frames) * (1 - part)), 1)
    return frames[np.sort(generator.permutation(len(frames))[:kept])]


def _reverse(frames: Frames, part: float, generator: np.random.Generator) -> Frames:
    first = len(frames) - round(len(frames) * part)
    return np.concatenate([frames[:first], frames[first:][::-1]])


def _shuffle(frames: Frames, window: float, generator: np.random.Generator) -> Frames:
    size = int(window) or len(frames)
    order = [
        start + place
        for start in range(0, len(frames), size)
        for place in generator.permutation(min(size, len(frames) - start))
    ]
    return frames[order]


_PERTURBATIONS: Mapping[str, Callable[[Frames, float, np.random.Generator], Frames]] = {
    "blur": _blur,
    "dark": lambda frames, factor, generator: brightness(frames, factor),
    "bright": lambda frames, factor, generator: brightness(frames, factor),
    "low contrast": lambda frames, factor, generator: contrast(frames, factor),
    "grey": lambda frames, factor, generator: color(frames, factor),
    "noise": _noise,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "occlude": _occlude,
    "drop frames": _drop,
    "reverse": _reverse,
    "shuffle": _shuffle,
}
