"""Scores of matching texts and videos, one number per pair: the model's and those of baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import TextBatch, TokenLevel, at_least_float32
from hbi_models.banzhaf.coalitions import expected_maxima, place_weights
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.configs import LEVELS
from hbi_models.retrieval import level_interaction
from hbi_models.similarity import candidates, sinking_padding, token_weights, unit_tokens


def pair_scores(
    texts: Sequence[TokenLevel],
    videos: Sequence[TokenLevel],
    rates: Sequence[float],
    *,
    zero_floor: bool = False,
    coalitions: float | None = None,
) -> Mapping[str, Float[Tensor, " pairs"]]:
    """Returns the scores of matching pairs, text i and video i, that are computed from their three levels alone.

    ``model``: the levels' similarities, weighed by ``rates``. ``entity``, ``action``, ``event``: each alone;
    ``coalitions`` is for the entity level. ``mean pooling``: cosine of the mean unit word and the mean unit frame.
    ``exact interaction``: the sum of the exact Banzhaf interactions of all words and frames (``banzhaf.exact``).
    """
    levels = [
        pair_similarity(text, video, zero_floor=zero_floor, coalitions=None if number else coalitions)
        for number, (text, video) in enumerate(zip(texts, videos, strict=True))
    ]
    model = sum((rate * level for rate, level in zip(rates, levels, strict=True) if rate), torch.zeros_like(levels[0]))
    return {
        "model": model,
        **dict(zip(LEVELS, levels, strict=True)),
        "mean pooling": F.cosine_similarity(_mean(texts[0]), _mean(videos[0])),
        "exact interaction": level_interaction(texts[0], videos[0]).sum(dim=(1, 2)),
    }


def pair_similarity(
    texts: TokenLevel, videos: TokenLevel, *, zero_floor: bool = False, coalitions: float | None = None
) -> Float[Tensor, " pairs"]:
    """Returns the similarity of matching pairs at one level: the diagonal of ``similarity.level_similarity``."""
    if coalitions is None:
        words, frames = candidates(texts, zero_floor=zero_floor), candidates(videos, zero_floor=zero_floor)
    else:
        words, frames = sinking_padding(texts, videos)
    cosines = einsum(words, frames, "pairs words dim, pairs frames dim -> pairs words frames")
    if coalitions is None:
        best_frame, best_word = cosines.amax(dim=2), cosines.amax(dim=1)
    else:
        word_places, frame_places = (place_weights(side.mask, coalitions, cosines.dtype) for side in (texts, videos))
        best_frame = expected_maxima(cosines, frame_places[:, None])
        best_word = expected_maxima(cosines.mT, word_places[:, None])
    text_side = (token_weights(texts, coalitions) * best_frame).sum(dim=1)
    video_side = (token_weights(videos, coalitions) * best_word).sum(dim=1)
    return (text_side + video_side) / 2


def clip_cosines(clip: ClipBackbone, texts: TextBatch, images: Float[Tensor, "pairs dim"]) -> Float[Tensor, " pairs"]:
    """Returns the encoder's own cosines: of each whole text and ``images``, the mean unit images of its video.

    The embedding of a text is the one that ``clip`` was trained with, at whichever position its text tower has it.
    """
    return F.cosine_similarity(clip.embed_texts(texts.token_ids, texts.mask), at_least_float32(images))


def _mean(level: TokenLevel) -> Float[Tensor, "items dim"]:
    counts = rearrange(level.mask.sum(dim=1).clamp(min=1), "items -> items 1")
    return unit_tokens(level).sum(dim=1) / counts
