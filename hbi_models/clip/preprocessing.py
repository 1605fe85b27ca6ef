"""From decoded frames to what CLIP's image tower expects.

The work is split where the bytes are cheapest: frames are resized once, when they are
extracted, and stored as uint8; cropping and normalisation happen on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from hbi_models.clip.pixels import CLIP_MEAN as CLIP_MEAN
from hbi_models.clip.pixels import CLIP_STD as CLIP_STD
from hbi_models.config_fields import require
from hbi_models.transfer import is_at_hand, sent


def resize_short_side(
    image: UInt8[np.ndarray, "height width 3"], size_px: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Returns the image with its short side at ``size_px``: bicubic, antialiased, aspect kept.

    The long side is rounded down, as torchvision's ``Resize`` does, whose result this equals.
    """
    require(size_px >= 1, f"the short side was to become {size_px} pixels; it must be 1 or more")
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    if short == size_px:
        return image
    new_long = size_px * long // short
    new_width, new_height = (size_px, new_long) if width <= height else (new_long, size_px)
    return np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))


def centre_crop(frames: UInt8[Tensor, "*frames 3 height width"], size_px: int) -> UInt8[Tensor, "*frames 3 size size"]:
    """Returns the central square of ``size_px`` pixels of channel-first frames.

    Raises:
        ValueError: A side is shorter than the square.
    """
    height, width = frames.shape[-2:]
    require(
        min(height, width) >= size_px,
        f"frames of {height} x {width} pixels hold no square of {size_px}; extract them with a short side of "
        f"at least {size_px} pixels",
    )
    # round() rounds half to even, which decides on which side an odd margin is larger.
    top, left = round((height - size_px) / 2), round((width - size_px) / 2)
    return frames[..., top : top + size_px, left : left + size_px]


def normalize_pixels(
    frames: UInt8[Tensor, "*frames 3 height width"],
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Float[Tensor, "*frames 3 height width"]:
    """Returns float pixels, centred and scaled per channel, on the device of ``frames``."""
    mean_255, std_255 = (_of_channels(tuple(values), frames.device) for values in (mean, std))
    if not is_at_hand(frames):
        # Contiguous, so that the memory layout of a batch does not decide which convolution kernel runs.
        return (frames.contiguous() - mean_255).div_(std_255)
    pixels = torch.empty(frames.shape, dtype=mean_255.dtype)
    # Image by image: a batch is larger than the cores' caches, and each of the three steps would go through all of it.
    for image, target in zip(_images(frames), _images(pixels), strict=True):
        target.copy_(image).sub_(mean_255).div_(std_255)
    return pixels


def _images(frames: Tensor) -> Tensor:
    return frames.reshape(-1, *frames.shape[-3:])


# The cache outlives the inference mode of a caller, and a tensor made in that mode can never take part in a gradient.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "3 1 1"]:
    """Returns a value per channel, on a scale of 0 to 255; it is sent to a device once, not with every batch."""
    return sent(torch.tensor(values).mul(255).reshape(3, 1, 1), device)


def square_frames(
    images: Iterable[UInt8[np.ndarray, "height width 3"]], size_px: int
) -> UInt8[Tensor, "frames 3 size size"]:
    """Returns the central squares of images, or of a whole decoded video, resized to ``size_px``.

    ``RetrievalModel.video_batch`` takes them from there.
    """
    # Copied, because PIL's pixels are read-only and PyTorch has no read-only tensors.
    resized = (torch.from_numpy(np.array(resize_short_side(image, size_px))) for image in images)
    return torch.stack(
        [centre_crop(rearrange(image, "height width rgb -> rgb height width"), size_px) for image in resized]
    )


def preprocess_image(image: UInt8[np.ndarray, "height width 3"], size_px: int) -> Float[Tensor, "3 size size"]:
    """Returns OpenAI's evaluation transform of one image: resize, central square, normalisation."""
    return normalize_pixels(square_frames([image], size_px)[0])
