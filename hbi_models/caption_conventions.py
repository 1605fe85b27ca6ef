"""Other conventions for videos with several captions. They give different figures for the same similarities.

The default (``metrics``) takes every caption as a query; the rank of a video is that of its best-ranked caption among
all captions. The functions here compute what other publications report, to be shown beside it.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hbi_models.config_fields import require
from hbi_models.metrics import text_to_video_ranks

Reduction = Literal["max", "mean"]


def caption_group_scores(
    similarity: Float[Tensor, "texts videos"], video_of_text: Int[Tensor, " texts"], reduction: Reduction
) -> Float[Tensor, "groups videos"]:
    """Returns the score of every video's captions, as one item, with every video.

    ``max``: the captions' largest similarity, as in CLIP4Clip's evaluation of MSVD (Luo et al., arXiv 2104.08860).
    ``mean``: their mean.

    Raises:
        ValueError: a video has no caption.
    """
    counts = torch.bincount(video_of_text, minlength=similarity.shape[1])
    require(
        len(counts) == similarity.shape[1] and bool((counts > 0).all()),
        f"{int((counts == 0).sum())} of {similarity.shape[1]} videos have no caption; leave them out",
    )
    scores = similarity.double()
    groups = scores.new_zeros(len(counts), similarity.shape[1])
    index = video_of_text[:, None].expand_as(scores)
    if reduction == "mean":
        return groups.scatter_add(0, index, scores) / counts[:, None]
    # Without the zeros in the groups, because similarities may be negative.
    return groups.scatter_reduce(0, index, scores, "amax", include_self=False)


def video_to_group_ranks(
    similarity: Float[Tensor, "texts videos"], video_of_text: Int[Tensor, " texts"], reduction: Reduction
) -> Float[Tensor, " videos"]:
    """Returns the rank of each video's own captions, as one item, among those of all videos, from 1."""
    groups = caption_group_scores(similarity, video_of_text, reduction)
    return text_to_video_ranks(groups.T, torch.arange(len(groups), device=groups.device))


def first_captions(video_of_text: Int[Tensor, " texts"]) -> Int[Tensor, " videos"]:
    """Returns the row of each video's first caption, in the order of the videos that have one."""
    seen: dict[int, int] = {}
    for row, video in enumerate(video_of_text.tolist()):
        seen.setdefault(video, row)
    return torch.tensor([seen[video] for video in sorted(seen)], dtype=torch.long)
