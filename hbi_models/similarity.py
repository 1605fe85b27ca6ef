"""Weighted token-wise interaction: how well the words of a text and the frames of a video match.

    S = ½ Σ_t α_t max_v c_tv + ½ Σ_v β_v max_t c_tv

with cosines c and softmax weights α, β (Wang et al., arXiv 2203.07111). Pairs of all texts
with all videos go through tiles, so that memory is bounded by the tile, also in training: the
backward pass needs the places of the maxima, not the cosines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.configs import require

MAX_TILE_ELEMENTS = 1 << 24
"""Cosines computed at once: 64 MiB in float32, large enough to keep a GPU busy."""


def retrieval_similarity(
    texts: Sequence[TokenLevel],
    videos: Sequence[TokenLevel],
    rates: Sequence[float],
    *,
    zero_floor: bool = False,
    max_tile_elements: int = MAX_TILE_ELEMENTS,
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
    texts: TokenLevel, videos: TokenLevel, *, zero_floor: bool = False, max_tile_elements: int = MAX_TILE_ELEMENTS
) -> Float[Tensor, "texts videos"]:
    """Returns the similarity of every text with every video at one level, in [-1, 1].

    Padding takes no part. An item without any real token has similarity 0 with everything.
    Computed in float32, also inside autocast.

    Args:
        texts: Words of the texts.
        videos: Frames of the videos.
        zero_floor: Published slip: padded tokens take part in the maxima with cosine 0.
        max_tile_elements: Upper bound of the cosines computed at once.
    """
    words, frames = unit_tokens(texts), unit_tokens(videos)
    word_weights, frame_weights = token_weights(texts), token_weights(videos)
    excluded_words = excluded_from_maxima(texts.mask, zero_floor=zero_floor)
    excluded_frames = excluded_from_maxima(videos.mask, zero_floor=zero_floor)
    rows, columns = tile_shape(words, frames, max_tile_elements)

    def tile(row: int, column: int) -> Float[Tensor, "tile_texts tile_videos"]:
        texts_here, videos_here = slice(row, row + rows), slice(column, column + columns)
        cosines = einsum(
            words[texts_here], frames[videos_here], "texts words dim, videos frames dim -> texts words videos frames"
        )
        best_frame = cosines.masked_fill(excluded_frames[videos_here], -torch.inf).max(dim=3).values
        excluded = rearrange(excluded_words[texts_here], "texts words -> texts words 1 1")
        best_word = cosines.masked_fill(excluded, -torch.inf).max(dim=1).values
        text_side = einsum(word_weights[texts_here], best_frame, "texts words, texts words videos -> texts videos")
        video_side = einsum(frame_weights[videos_here], best_word, "videos frames, texts videos frames -> texts videos")
        return (text_side + video_side) / 2

    with torch.autocast(device_type=words.device.type, enabled=False):
        return torch.cat(
            [
                torch.cat([tile(row, column) for column in range(0, len(frames), columns)], dim=1)
                for row in range(0, len(words), rows)
            ]
        )


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
    """Returns the features at length 1, in float32; 0 at padding."""
    mask = rearrange(level.mask, "items tokens -> items tokens 1")
    return F.normalize(level.features.float(), dim=-1).masked_fill(~mask, 0)


def excluded_from_maxima(mask: Bool[Tensor, "items tokens"], *, zero_floor: bool) -> Bool[Tensor, "items tokens"]:
    """Returns which tokens cannot be a maximum: padding, unless the item holds nothing else."""
    if zero_floor:
        return torch.zeros_like(mask)
    return ~mask & mask.any(dim=-1, keepdim=True)


def tile_shape(
    words: Float[Tensor, "texts words dim"], frames: Float[Tensor, "videos frames dim"], max_elements: int
) -> tuple[int, int]:
    """Returns how many texts and videos make a tile of at most ``max_elements`` cosines, at least one each."""
    pairs = max(max_elements // (words.shape[1] * frames.shape[1]), 1)
    columns = max(min(len(frames), pairs), 1)
    return max(min(len(words), pairs // columns), 1), columns
