"""Frames that reach the model's device as JPEG images and are decoded there by torchcodec: on a GPU, with nvJPEG.

The loader then only reads. nvJPEG rounds otherwise than libjpeg-turbo, which decodes everywhere else, so pixels may
differ by a few grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from torch import Tensor

from hbi_models.clip.preprocessing import centre_crop


class EncodedClips(NamedTuple):
    """The JPEG images of a batch of clips, on the host."""

    data: UInt8[Tensor, " bytes"]
    """Of all images, one behind the other."""
    sizes: Int[Tensor, "clips frames"]
    """Bytes of each image; 0 = padding, behind the images of its clip."""


def joined(clips: Sequence[Sequence[bytes]], *, max_frames: int) -> EncodedClips:
    """Returns the images of ``clips``, each of which has at most ``max_frames``."""
    sizes = [[len(image) for image in clip] + [0] * (max_frames - len(clip)) for clip in clips]
    # A bytearray, since PyTorch warns of memory that cannot be written.
    data = torch.frombuffer(bytearray().join(image for clip in clips for image in clip), dtype=torch.uint8)
    return EncodedClips(data, torch.tensor(sizes))


def decoded_on(
    device: torch.device, clips: EncodedClips, rows: slice, *, side_px: int
) -> UInt8[Tensor, "clips frames 3 side side"]:
    """Returns the central squares of the clips at ``rows`` on ``device``, black at padding.

    The host waits for the decoder.

    Raises:
        ValueError: an image cannot be decoded, or is smaller than the squares.
    """
    from torchcodec.decoders import decode_jpeg  # an extra

    sizes = clips.sizes[rows].flatten().tolist()
    before = int(clips.sizes[: rows.start or 0].sum())
    images = [image for image in torch.split(clips.data[before : before + sum(sizes)], sizes) if len(image)]
    try:
        pixels = iter(decode_jpeg(images, mode="RGB", device=device))
    except RuntimeError as error:
        raise ValueError(
            f"an image of this batch could not be decoded on {device}: {error}; with image_decoding cpu the message "
            "names the video"
        ) from error
    black = torch.zeros(3, side_px, side_px, dtype=torch.uint8, device=device)
    squares = torch.stack([centre_crop(next(pixels), side_px) if size else black for size in sizes])
    return rearrange(squares, "(clips frames) rgb h w -> clips frames rgb h w", frames=clips.sizes.shape[1])
