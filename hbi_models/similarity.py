"""Weighted token-wise interaction: how well the words of a text and the frames of a video match.

    S = ½ Σ_t α_t max_v c_tv + ½ Σ_v β_v max_t c_tv

with cosines c and softmax weights α, β (Wang et al., arXiv 2203.07111). With ``coalitions`` it is the expectation of
this value when words and frames join at random (``banzhaf/coalitions.py``). The similarities of all texts with all
videos are computed in tiles, which bound the memory. This also holds in training, because the backward pass needs only
the places of the maxima and not the cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import TokenLevel, at_least_float32
from hbi_models.banzhaf.coalitions import expected_maxima, expected_weights, place_weights
from hbi_models.config_fields import require

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
    coalitions: float | None = None,
    max_tile_elements: int | None = None,
) -> Float[Tensor, "texts videos"]:
    """Returns the levels' similarities, mixed by ``rates``; levels with rate 0 are not computed.

    ``coalitions`` is for the finest level, the first.

    Raises:
        ValueError: The numbers of levels and rates differ, or every rate is 0.
    """
    require(
        len(texts) == len(videos) == len(rates),
        f"got {len(texts)} text levels, {len(videos)} video levels and {len(rates)} rates; there must be as many",
    )
    require(any(rates), f"the rates of the levels are {tuple(rates)}; at least one must differ from 0")
    parts = [
        rate
        * level_similarity(
            text,
            video,
            zero_floor=zero_floor,
            coalitions=None if level else coalitions,
            max_tile_elements=max_tile_elements,
        )
        for level, (text, video, rate) in enumerate(zip(texts, videos, rates, strict=True))
        if rate
    ]
    return torch.stack(parts).sum(dim=0)


def level_similarity(
    texts: TokenLevel,
    videos: TokenLevel,
    *,
    zero_floor: bool = False,
    coalitions: float | None = None,
    max_tile_elements: int | None = None,
) -> Float[Tensor, "texts videos"]:
    """Returns the similarity of every text with every video at one level, in [-1, 1].

    Padding takes no part. An item without any real token has similarity 0 with everything.
    Computed in float32, also inside autocast.

    Args:
        texts: Words of the texts.
        videos: Frames of the videos.
        zero_floor: Published slip: padded tokens take part in the maxima with cosine 0. Not allowed with
            ``coalitions``.
        coalitions: The probability with which each word and each frame takes part. The result is then the expected
            similarity of those that do, given that both sides are present, within 2e-4. None = all take part.
        max_tile_elements: Upper bound of the cosines computed at once; by default what suits the device.

    Raises:
        ValueError: ``coalitions`` does not lie in (0, 1], or is given with ``zero_floor``.
    """
    with torch.autocast(device_type=texts.features.device.type, enabled=False):
        tile: Callable[..., Tensor]
        sides: list[tuple[Tensor, ...]]
        if coalitions is None:
            tile = similarity_tile
            sides = [(candidates(level, zero_floor=zero_floor), token_weights(level)) for level in (texts, videos)]
        else:
            require(not zero_floor, "padding joins no coalition: leave zero_floor or coalitions out")
            tile = coalition_tile
            sides = [
                (tokens, token_weights(level, coalitions), place_weights(level.mask, coalitions, tokens.dtype))
                for tokens, level in zip(sinking_padding(texts, videos), (texts, videos), strict=True)
            ]
        if torch.compiler.is_exporting():
            # Tiles depend on the numbers of items, and a graph is for any.
            return tile(*sides[0], *sides[1])
        rows, columns = tile_shape(sides[0][0], sides[1][0], max_tile_elements)
        text_tiles = zip(*(torch.split(part, rows) for part in sides[0]), strict=True)
        video_tiles = list(zip(*(torch.split(part, columns) for part in sides[1]), strict=True))
        # Of no items torch.split makes one empty part, so the result always has both axes.
        return torch.cat([torch.cat([tile(*text, *video) for video in video_tiles], dim=1) for text in text_tiles])


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


def coalition_tile(
    words: Float[Tensor, "texts words dim"],
    word_weights: Float[Tensor, "texts words"],
    word_places: Float[Tensor, "texts word_places"],
    frames: Float[Tensor, "videos frames dim"],
    frame_weights: Float[Tensor, "videos frames"],
    frame_places: Float[Tensor, "videos frame_places"],
) -> Float[Tensor, "texts videos"]:
    """Returns the expected similarity over coalitions, of tokens from ``sinking_padding``.

    Args:
        words: Tokens of the texts.
        word_weights: Their expected weights.
        word_places: What their largest, second largest, ... value with a frame counts in its expected maximum.
        frames: Tokens of the videos, and so on.
    """
    cosines = einsum(words, frames, "texts words dim, videos frames dim -> texts words videos frames")
    best_frame = expected_maxima(cosines, frame_places[None, None])
    # The words become the last axis: texts videos frames words.
    best_word = expected_maxima(cosines.movedim(1, 3), word_places[:, None, None])
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


def token_weights(level: TokenLevel, coalitions: float | None = None) -> Float[Tensor, "items tokens"]:
    """Returns the softmax of the importance logits over an item's real tokens; 0 at padding.

    With ``coalitions`` it is the expected softmax over those that join.
    """
    if coalitions is not None:
        return expected_weights(level.logits, level.mask, coalitions)
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
    copies = rearrange(
        tokens[torch.arange(tokens.shape[0], device=tokens.device), first_real], "items dim -> items 1 dim"
    )
    return torch.where(rearrange(level.mask, "items tokens -> items tokens 1"), tokens, copies)


def sinking_padding(texts: TokenLevel, videos: TokenLevel) -> tuple[Tensor, Tensor]:
    """Returns tokens whose products are the cosines of real ones, and lie below -1 where either is padding.

    Two additional channels do this inside the product. A mask would need another pass over all pairs.
    """
    words, frames = unit_tokens(texts), unit_tokens(videos)
    # Tokens of padding are 0, so their products are -4 or -8: below all cosines, but finite, because they meet weights
    # of 0.
    (one_word, sunk_word), (one_frame, sunk_frame) = (
        (torch.ones_like(tokens[..., :1]), -4.0 * level.mask.logical_not()[..., None].to(tokens.dtype))
        for tokens, level in ((words, texts), (frames, videos))
    )
    return torch.cat([words, one_word, sunk_word], dim=-1), torch.cat([frames, sunk_frame, one_frame], dim=-1)


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
    # Where there are few videos, a tile holds more texts instead.
    return min(pairs // columns, max(len(words), 1)), columns
