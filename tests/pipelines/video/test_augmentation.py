from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from pipelines.recipe.training import AugmentationConfig
from pipelines.video.augmentation import (
    OPERATIONS,
    Operation,
    apply_operation,
    augmentation_rng,
    draw_operations,
    rand_augment,
)

GREY = (128, 128, 128)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def _solarize_add(image: Image.Image, amount: float) -> Image.Image:
    return image.point([min(255, level + int(amount)) if level < 128 else level for level in range(256)] * 3)


def _black(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size)


# What timm's RandAugment calls for each operation, on one frame.
PIL_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GREY),
    # Pillow has come to refuse 0 bits, which used to give black.
    "PosterizeIncreasing": lambda image, bits: ImageOps.posterize(image, int(bits)) if bits else _black(image),
    "SolarizeIncreasing": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "ContrastIncreasing": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "BrightnessIncreasing": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "SharpnessIncreasing": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor: _affine(image, 1, factor, 0, 0, 1, 0),
    "ShearY": lambda image, factor: _affine(image, 1, 0, 0, factor, 1, 0),
    "TranslateXRel": lambda image, part: _affine(image, 1, 0, part * image.width, 0, 1, 0),
    "TranslateYRel": lambda image, part: _affine(image, 1, 0, 0, 0, 1, part * image.height),
}


@pytest.fixture(scope="session")
def clip(real_videos: dict[str, Path]) -> np.ndarray:
    """Three frames of a real video, not square, and one of noise."""
    with av.open(str(real_videos["carphone_pristine"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][::50]
    noise = np.random.default_rng(0).integers(0, 256, frames[0].shape, dtype=np.uint8)
    return np.stack([*frames, noise])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("strength", [0.0, 0.33, 0.7, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_pils_on_every_frame(clip: np.ndarray, name: str, strength: float, sign: float) -> None:
    argument = OPERATIONS[name].to_argument(strength, sign)
    before = clip.copy()
    augmented = apply_operation(clip, Operation(name, argument))
    expected = np.stack([np.asarray(PIL_OPERATIONS[name](Image.fromarray(frame), argument)) for frame in clip])
    assert (augmented.dtype, augmented.shape) == (np.uint8, clip.shape)
    difference = np.abs(augmented.astype(int) - expected)
    # PIL truncates a sum in double precision; ours in single precision falls to the other side at times.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.03
    np.testing.assert_array_equal(clip, before)


def test_strength_becomes_timms_arguments() -> None:
    at_full = {name: kind.to_argument(1.0, -1.0) for name, kind in OPERATIONS.items()}
    assert at_full == pytest.approx(
        {
            "AutoContrast": 0, "Equalize": 0, "Invert": 0, "Rotate": -30, "PosterizeIncreasing": 0,
            "SolarizeIncreasing": 0, "SolarizeAdd": 110, "ColorIncreasing": 0.1, "ContrastIncreasing": 0.1,
            "BrightnessIncreasing": 0.1, "SharpnessIncreasing": 0.1, "ShearX": -0.3, "ShearY": -0.3,
            "TranslateXRel": -0.45, "TranslateYRel": -0.45,
        }
    )  # fmt: skip
    assert OPERATIONS["PosterizeIncreasing"].to_argument(0.7, 1) == 2
    assert OPERATIONS["SolarizeIncreasing"].to_argument(0.7, 1) == 77
    assert OPERATIONS["ColorIncreasing"].to_argument(0.7, 1) == pytest.approx(1.63)


def test_draws_follow_the_settings() -> None:
    config = AugmentationConfig()
    drawn = [draw_operations(config, augmentation_rng(0, 0, 0, f"video{i}")) for i in range(2000)]
    # 4 operations, each with probability 1/2; three standard errors of the mean of 2000 are 0.07.
    assert np.mean([len(operations) for operations in drawn]) == pytest.approx(2, abs=0.07)
    counts = Counter(operation.name for operations in drawn for operation in operations)
    assert counts.keys() == OPERATIONS.keys()
    # About 267 each, standard deviation 16.
    assert all(200 < count < 335 for count in counts.values())
    degrees = [operation.argument for operations in drawn for operation in operations if operation.name == "Rotate"]
    assert np.mean(np.abs(degrees)) == pytest.approx(21, abs=0.5)
    assert np.std(np.abs(degrees)) == pytest.approx(1.5, abs=0.3)
    assert 0.35 < np.mean(np.asarray(degrees) > 0) < 0.65


def test_all_frames_get_the_same_operations(clip: np.ndarray) -> None:
    still = np.repeat(clip[:1], 3, axis=0)
    for number in range(10):
        augmented = rand_augment(still, AugmentationConfig(), augmentation_rng(1, 0, 0, str(number)))
        np.testing.assert_array_equal(augmented[0], augmented[2])


def test_augmentation_is_off_where_disabled(clip: np.ndarray) -> None:
    augmented = rand_augment(clip, AugmentationConfig(enabled=False), augmentation_rng(0, 0, 0, "a"))
    np.testing.assert_array_equal(augmented, clip)


@pytest.mark.slow
def test_the_generator_depends_on_each_of_its_parts_and_on_nothing_else() -> None:
    arguments = [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b"), (0, 0, 0, "a")]
    values = [augmentation_rng(*argument).random() for argument in arguments]
    assert len(set(values)) == 5
    # In every process, whatever the seed of its hashes.
    assert values[0] == values[-1] == 0.7525483159505371


def test_an_unknown_operation_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no operation 'Blur'"):
        apply_operation(clip, Operation("Blur", 1.0))
