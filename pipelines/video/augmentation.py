"""RandAugment for clips: a few random image operations, the same for every frame of a clip.

The published training uses ``rand-m7-n4-mstd0.5-inc1`` in the notation of timm: 4 of the 15
"increasing" operations with replacement, each applied with probability 0.5, strength 7 of 10 with
standard deviation 0.5 (Cubuk et al., RandAugment, 2020, arXiv 1909.13719). ``image_operations``
holds the operations themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from pipelines.recipe.training import AugmentationConfig
from pipelines.video import image_operations as images

MAX_MAGNITUDE = 10.0

Frames = UInt8[np.ndarray, "frames height width 3"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One of ``OPERATIONS`` and its argument, in the unit that the operation takes."""

    name: str
    argument: float


@dataclass(frozen=True, slots=True)
class _Kind:
    """How strength becomes an argument, whether its sign is random, and what is done with it."""

    to_argument: Callable[[float, float], float]
    """From the strength, 0 to 1, and a sign, -1 or 1."""

    apply: Callable[[Frames, float], Frames]


def augmentation_rng(seed: int, epoch: int, pass_index: int, video_id: str) -> np.random.Generator:
    """The generator of one clip's augmentation: the same in every process and on every machine."""
    # Python's own hash of a text differs from process to process.
    digest = hashlib.sha256(f"{seed}\n{epoch}\n{pass_index}\n{video_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def view_rng(seed: int, view: int, video_id: str) -> np.random.Generator:
    """The generator of one augmented copy of a clip, whose features are stored."""
    # The first word keeps these generators apart from those above.
    digest = hashlib.sha256(f"view\n{seed}\n{view}\n{video_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def rand_augment(frames: Frames, config: AugmentationConfig, rng: np.random.Generator) -> Frames:
    """``frames`` after randomly drawn operations; the input is not modified."""
    for operation in draw_operations(config, rng):
        frames = apply_operation(frames, operation)
    return frames


def draw_operations(config: AugmentationConfig, rng: np.random.Generator) -> list[Operation]:
    """The operations for one clip, in the order in which they are applied; possibly none."""
    if not config.enabled:
        return []
    drawn = []
    for name in rng.choice(list(OPERATIONS), size=config.operations):
        # All numbers are drawn in any case, so that one decision does not shift the next ones.
        applied = rng.random() < config.probability
        magnitude = float(np.clip(rng.normal(config.magnitude, config.magnitude_std), 0, MAX_MAGNITUDE))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            drawn.append(Operation(str(name), OPERATIONS[str(name)].to_argument(magnitude / MAX_MAGNITUDE, sign)))
    return drawn


def apply_operation(frames: Frames, operation: Operation) -> Frames:
    """``frames`` after one operation.

    Raises:
        ValueError: there is no such operation.
    """
    if operation.name not in OPERATIONS:
        raise ValueError(f"there is no operation {operation.name!r}; there are {', '.join(OPERATIONS)}")
    return OPERATIONS[operation.name].apply(frames, operation.argument)


def _enhancement(strength: float, sign: float) -> float:
    """A factor around 1, which changes nothing, in [0.1, 1.9]."""
    return 1 + sign * 0.9 * strength


# Ranges of timm's "increasing" set: the effect grows with the strength, 0 to 1. Operations are drawn by their place
# here, so another order gives other augmentations for the same seed.
OPERATIONS: dict[str, _Kind] = {
    "AutoContrast": _Kind(lambda strength, sign: 0, lambda frames, _: images.autocontrast(frames)),
    "Equalize": _Kind(lambda strength, sign: 0, lambda frames, _: images.equalize(frames)),
    "Invert": _Kind(lambda strength, sign: 0, lambda frames, _: images.invert(frames)),
    "Rotate": _Kind(lambda strength, sign: sign * 30 * strength, images.rotate),
    "PosterizeIncreasing": _Kind(
        lambda strength, sign: 4 - int(4 * strength), lambda frames, bits: images.posterize(frames, int(bits))
    ),
    "SolarizeIncreasing": _Kind(lambda strength, sign: 256 - int(256 * strength), images.solarize),
    "SolarizeAdd": _Kind(
        lambda strength, sign: int(110 * strength), lambda frames, amount: images.solarize_add(frames, int(amount))
    ),
    "ColorIncreasing": _Kind(_enhancement, images.color),
    "ContrastIncreasing": _Kind(_enhancement, images.contrast),
    "BrightnessIncreasing": _Kind(_enhancement, images.brightness),
    "SharpnessIncreasing": _Kind(_enhancement, images.sharpness),
    "ShearX": _Kind(lambda strength, sign: sign * 0.3 * strength, images.shear_x),
    "ShearY": _Kind(lambda strength, sign: sign * 0.3 * strength, images.shear_y),
    "TranslateXRel": _Kind(lambda strength, sign: sign * 0.45 * strength, images.translate_x),
    "TranslateYRel": _Kind(lambda strength, sign: sign * 0.45 * strength, images.translate_y),
}
