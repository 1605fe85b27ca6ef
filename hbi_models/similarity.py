"""Weighted token-wise interaction: how well the words of a text and the frames of a video match.

    S = ½ Σ_t α_t max_v c_tv + ½ Σ_v β_v max_t c_tv

with cosines c and softmax weights α, β (Wang et al., arXiv 2203.07111). The similarities of all texts with all videos
are computed in tiles, which bound the memory. This holds in training, too, because the backward pass needs only the
places of the maxima and not the cosines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import TokenLevel, at_least_float32
from hbi_models.configs import require

MAX_TILE_ELEMENTS_CPU = 1 << 20
"""Cosines computed at once: 4 MiB in float32, so that they are still in the processor's cache for the maxima."""
MAX_TILE_ELEMENTS_GPU = 1 << 24
"""The same on an accelerator: 64 MiB, large enough to keep it busy."""


def retrieval_similarity(
    texts: Sequence[TokenLevel],
    videos: Sequence[TokenLevel],
    rates: Sequence[float],
    *,
    zero_floor: bool = False,
    max_tile_elements: int | None = None,
) -> Float[Tensor, "texts videos"]:
    """Returns the levels' similarities, mixed by ``rates``; levels with rate 0 are not computed.

    Raises:
        ValueError: The numbers of levels and rates differ, or every rate is 0.
    """
    require(
        len(texts) == len(videos) == len(rates),
        f"got {len(texts)} text levels, {len(videos)} video levels and {len(rates)} rates; there must be as many",
    )
    require(any(rates), f"the rates of the levels are {tuple(rates)}; at least one must differ from 0")
    parts = [
        rate * level_similarity(text, video, zero_floor=zero_floor, max_tile_elements=max_tile_elements)
        for text, video, rate in zip(texts, videos, rates, strict=True)
        if rate
    ]
    return torch.stack(parts).sum(dim=0)


def level_similarity(
    texts: TokenLevel, videos: TokenLevel, *, zero_floor: bool = False, max_tile_elements: int | None = None
) -> Float[Tensor, "texts videos"]:
    """Returns the similarity of every text with every video at one level, in [-1, 1].

    Padding takes no part. An item without any real token has similarity 0 with everything.
    Computed in float32, also inside autocast.

    Args:
        texts: Words of the texts.
        videos: Frames of the videos.
        zero_floor: Published slip: padded tokens take part in the maxima with cosine 0.
        max_tile_elements: Upper bound of the cosines computed at once; by default what suits the device.
    """
    words, frames = candidates(texts, zero_floor=zero_floor), candidates(videos, zero_floor=zero_floor)
    word_weights, frame_weights = token_weights(texts), token_weights(videos)
    rows, columns = tile_shape(words, frames, max_tile_elements)
    video_tiles = list(zip(torch.split(frames, columns), torch.split(frame_weights, columns), strict=True))
    text_tiles = zip(torch.split(words, rows), torch.split(word_weights, rows), strict=True)
    with torch.autocast(device_type=words.device.type, enabled=False):
        return torch.cat(
            [torch.cat([similarity_tile(*text, *video) for video in video_tiles], dim=1) for text in text_tiles]
        )


def similarity_tile(
    words: Float[Tensor, "texts words dim"],
    word_weights: Float[Tensor, "texts words"],
    frames: Float[Tensor, "videos frames dim"],
    frame_weights: Float[Tensor, "videos frames"],
) -> Float[Tensor, "texts videos"]:
    """Returns the similarity of texts with videos, from tokens of length 1 of which each may be a maximum."""
    cosines = einsum(words, frames, "texts words dim, videos frames dim -> texts words videos frames")
    best_frame, best_word = maxima(cosines, dim=3), maxima(cosines, dim=1)
    text_side = einsum(word_weights, best_frame, "texts words, texts words videos -> texts videos")
    video_side = einsum(frame_weights, best_word, "videos frames, texts videos frames -> texts videos")
    return (text_side + video_side) / 2


def maxima(values: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Returns the maxima along ``dim``; if a gradient is needed, only their places are kept, not the values."""
    # ``amax`` is several times faster, but its gradient needs the values.
    return values.max(dim=dim).values if values.requires_grad else values.amax(dim=dim)


def token_cosines(texts: TokenLevel, videos: TokenLevel) -> Float[Tensor, "pairs words frames"]:
    """Returns the cosines of words and frames of matching pairs in float32; 0 where either is padding."""
    words, frames = unit_tokens(texts), unit_tokens(videos)
    with torch.autocast(device_type=words.device.type, enabled=False):
        return einsum(words, frames, "pairs words dim, pairs frames dim -> pairs words frames")


def token_weights(level: TokenLevel) -> Float[Tensor, "items tokens"]:
    """Returns the softmax of the importance logits over an item's real tokens; 0 at padding."""
    lowest = torch.finfo(level.logits.dtype).min
    return level.logits.masked_fill(~level.mask, lowest).softmax(dim=-1) * level.mask


def unit_tokens(level: TokenLevel) -> Float[Tensor, "items tokens dim"]:
    """Returns the features at length 1, in float32 or better; 0 at padding."""
    mask = rearrange(level.mask, "items tokens -> items tokens 1")
    return F.normalize(at_least_float32(level.features), dim=-1).masked_fill(~mask, 0)


def candidates(level: TokenLevel, *, zero_floor: bool) -> Float[Tensor, "items tokens dim"]:
    """Returns tokens of length 1 among which maxima may be taken without a mask.

    Padding is replaced by a copy of a real token of the item, which changes no maximum. An item without real tokens
    keeps its zeros, and with ``zero_floor`` all padding does.
    """
    tokens = unit_tokens(level)
    if zero_floor:
        return tokens
    first_real = level.mask.int().argmax(dim=1)
    copies = rearrange(tokens[torch.arange(len(tokens)), first_real], "items dim -> items 1 dim")
    return torch.where(rearrange(level.mask, "items tokens -> items tokens 1"), tokens, copies)


def tile_shape(
    words: Float[Tensor, "texts words dim"], frames: Float[Tensor, "videos frames dim"], max_elements: int | None
) -> tuple[int, int]:
    """Returns how many texts and videos make a tile of at most ``max_elements`` cosines, at least one each.

    Tiles are as square as the numbers of items allow, because their matrix products then read the least memory.
    """
    if max_elements is None:
        max_elements = MAX_TILE_ELEMENTS_CPU if words.device.type == "cpu" else MAX_TILE_ELEMENTS_GPU
    pairs = max(max_elements // (words.shape[1] * frames.shape[1]), 1)
    rows = min(math.isqrt(pairs), max(len(words), 1))
    columns = min(pairs // rows, max(len(frames), 1))
    return min(pairs // columns, max(len(words), 1)), columns
