"""The retrieval loss, as functions of tensors that are already gathered from all workers.

Contrastive, interaction and distillation losses are those of arXiv 2303.14369, weighted as in
its published code. Where that code departs from its own intention there is a setting,
``Quirks.batch_axis_kl``; see ``interaction_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from hbi_models.axes import Interaction, PairFeatures
from hbi_models.configs import LEVELS, LossConfig, Quirks
from hbi_models.similarity import level_similarity


@dataclass(frozen=True, slots=True)
class RetrievalLoss:
    """The loss to minimise, and its parts by name.

    Parts, for each level: ``{level}_nce_t2v``, ``{level}_nce_v2t`` and their mean
    ``{level}_nce``; with an interaction loss ``{level}_interaction_frames``,
    ``{level}_interaction_words`` and their sum ``{level}_interaction``; ``{level}``, the
    weighted sum of the two. For action and event: ``distill_t2v_{level}`` and
    ``distill_v2t_{level}``; ``distill``, the sum of all four.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


def retrieval_loss(
    features: PairFeatures, logit_scale: Float[Tensor, ""], *, config: LossConfig, quirks: Quirks
) -> RetrievalLoss:
    """Returns the loss of a whole batch of pairs: contrastive, interaction, distillation.

    ``logit_scale`` is the logarithm of the factor that multiplies similarities, as in CLIP.
    """
    similarities = {
        level: level_similarity(texts, videos, zero_floor=quirks.zero_floor)
        for level, texts, videos in zip(LEVELS, features.texts, features.videos, strict=True)
    }
    parts: dict[str, Tensor] = {}
    for index, (level, similarity) in enumerate(similarities.items()):
        logits = logit_scale.exp() * similarity
        parts[f"{level}_nce_t2v"] = contrastive_loss(logits)
        parts[f"{level}_nce_v2t"] = contrastive_loss(logits.t())
        parts[f"{level}_nce"] = (parts[f"{level}_nce_t2v"] + parts[f"{level}_nce_v2t"]) / 2
        parts[level] = parts[f"{level}_nce"]
        if features.interactions:
            over_frames, over_words = interaction_loss(
                features.interactions[index],
                features.texts[index].mask,
                features.videos[index].mask,
                batch_axis_kl=quirks.batch_axis_kl,
            )
            parts[f"{level}_interaction_frames"] = over_frames
            parts[f"{level}_interaction_words"] = over_words
            parts[f"{level}_interaction"] = over_frames + over_words
            parts[level] = parts[level] + config.skl * parts[f"{level}_interaction"]
    entity, *merged_levels = LEVELS
    distillation = {}
    for level in merged_levels:
        student, target = similarities[level], similarities[entity]
        distillation[f"distill_t2v_{level}"] = kl_divergence(student, target)
        distillation[f"distill_v2t_{level}"] = kl_divergence(student.t(), target.t())
    parts |= distillation
    parts["distill"] = torch.stack(list(distillation.values())).sum()
    total = torch.stack([parts[level] for level in LEVELS]).sum() + config.kl * parts["distill"]
    return RetrievalLoss(total, parts)


def contrastive_loss(logits: Float[Tensor, "queries candidates"]) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy of each row, whose match is on the diagonal (InfoNCE)."""
    return -logits.log_softmax(dim=-1).diagonal().mean()


def kl_divergence(student: Float[Tensor, "*axes"], target: Float[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Returns the divergence of the student's softmax over the last axis from the target's.

    The mean is over all elements, as published, not over rows: an n x n matrix gives 1/n of the
    mean divergence of its rows. Gradient flows into the target, too.
    """
    return F.kl_div(student.log_softmax(dim=-1), target.log_softmax(dim=-1), reduction="none", log_target=True).mean()


def interaction_loss(
    interaction: Interaction,
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
    *,
    batch_axis_kl: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the divergence of predicted from target interactions over frames, and over words.

    For each word, interactions become a distribution over the frames of its own video; for each
    frame, over the words of its own text. Padding takes no part, and the means are over real
    cells. The published code (``batch_axis_kl``) sets padding to 0 and lets it take part, and
    takes its second distribution over the pairs of the batch instead of the words.
    """
    cells = rearrange(word_mask, "pairs words -> pairs words 1") & rearrange(
        frame_mask, "pairs frames -> pairs 1 frames"
    )
    if batch_axis_kl:
        prediction, target = interaction.prediction * cells, interaction.target * cells
        to_last = "pairs words frames -> frames words pairs"
        return kl_divergence(prediction, target), kl_divergence(
            rearrange(prediction, to_last), rearrange(target, to_last)
        )
    return (
        masked_kl_divergence(interaction.prediction, interaction.target, cells, dim=2),
        masked_kl_divergence(interaction.prediction, interaction.target, cells, dim=1),
    )


def masked_kl_divergence(
    student: Float[Tensor, "*axes"], target: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int
) -> Float[Tensor, ""]:
    """Returns ``kl_divergence`` over ``dim`` among masked-in elements, and their mean; 0 without any."""
    student, target = (
        logits.masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(dim=dim) for logits in (student, target)
    )
    divergence = target.exp() * (target - student)
    return divergence.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
