"""Resizing, cropping and normalising, against torchvision's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torchvision import transforms

from hbi_models.clip.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    centre_crop,
    normalize_pixels,
    preprocess_image,
    resize_short_side,
)

SIZES = [(48, 64), (61, 37), (24, 20), (32, 32), (33, 100), (32, 47)]


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_equals_torchvisions(size: tuple[int, int]) -> None:
    image = random_image(*size)
    expected = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )(Image.fromarray(image))
    # Float32 rounding of (x - 255 mean) / (255 std) against (x / 255 - mean) / std.
    torch.testing.assert_close(preprocess_image(image, 32), expected, rtol=1e-5, atol=1e-5)


def test_stored_frames_give_what_their_images_give() -> None:
    images = [random_image(40, 56) for _ in range(2)]
    stored = torch.from_numpy(np.stack([resize_short_side(image, 32) for image in images]))
    frames = normalize_pixels(centre_crop(rearrange(stored, "frames h w rgb -> frames rgb h w"), 32))
    torch.testing.assert_close(frames, torch.stack([preprocess_image(image, 32) for image in images]))


def test_pixels_do_not_depend_on_the_layout_of_a_batch_nor_on_its_size() -> None:
    stored = torch.randint(256, (2, 3, 8, 10, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = rearrange(stored, "videos frames h w rgb -> videos frames rgb h w")
    mean, std = (torch.tensor(values).mul(255).reshape(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    found = normalize_pixels(frames)
    assert found.is_contiguous()
    for pixels in (normalize_pixels(frames.contiguous()), (frames.contiguous() - mean) / std):
        assert torch.equal(found, pixels)
    assert torch.equal(normalize_pixels(frames[1, 2]), found[1, 2])
    assert normalize_pixels(frames[:0]).shape == (0, 3, 3, 8, 10)


def test_resizing_keeps_the_aspect_and_its_input() -> None:
    image = random_image(64, 36)
    before = image.copy()
    assert resize_short_side(image, 18).shape == (32, 18, 3)
    np.testing.assert_array_equal(image, before)


def test_frames_too_small_to_crop_are_refused() -> None:
    with pytest.raises(ValueError, match="16 x 20 pixels hold no square of 32"):
        centre_crop(torch.zeros(3, 16, 20, dtype=torch.uint8), 32)
