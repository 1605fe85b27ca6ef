"""The losses of retrieval and question answering, of tensors that are already gathered from all workers.

Contrastive, interaction and distillation losses are those of arXiv 2303.14369, weighted as in
its published code. Where that code is mistaken there are settings, ``Quirks.batch_axis_kl`` and
``Quirks.padded_interaction``; see ``interaction_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hbi_models.axes import AnsweredPairs, Interaction, PairFeatures
from hbi_models.configs import LEVELS, GameConfig, LossConfig, Quirks, VideoQAConfig
from hbi_models.entropies import entropy_scale
from hbi_models.similarity import level_similarity

PLAIN_GAME = GameConfig()
"""All words and frames are present, and targets are not scaled by the batch."""


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """The loss to minimise, and its parts by name."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


def retrieval_loss(
    features: PairFeatures,
    logit_scale: Float[Tensor, ""],
    *,
    config: LossConfig,
    quirks: Quirks,
    game: GameConfig = PLAIN_GAME,
) -> TrainingLoss:
    """Returns the loss of a whole batch of pairs: contrastive, interaction, distillation.

    Its parts are those of ``pair_losses``, where ``{level}`` is the weighted sum of a level's
    contrastive and interaction losses, and for action and event ``distill_t2v_{level}`` and
    ``distill_v2t_{level}``; ``distill``, the sum of all four.

    ``logit_scale`` is the logarithm of the factor that multiplies similarities, as in CLIP.
    """
    similarities = level_similarities(features, quirks, game)
    parts = pair_losses(features, similarities, logit_scale, config=config, quirks=quirks, game=game)
    entity, *merged_levels = LEVELS
    # Without the logit scale, as published: these are softmaxes of bare cosines, and so nearly uniform.
    distillation = {}
    for level in merged_levels:
        student, target = similarities[level], similarities[entity]
        distillation[f"distill_t2v_{level}"] = kl_divergence(student, target)
        distillation[f"distill_v2t_{level}"] = kl_divergence(student.t(), target.t())
    return sum_of_parts(parts, distillation, config)


def video_qa_loss(answered: AnsweredPairs, logit_scale: Float[Tensor, ""], *, config: VideoQAConfig) -> TrainingLoss:
    """Returns the loss of a whole batch of questions: contrastive, interaction, answers, distillation.

    Its parts are those of ``pair_losses``; for each level ``{level}_ce``, the cross-entropy of
    its answers, and ``{level}``, the sum of that and ``config.pair_loss_weight`` times the
    contrastive and interaction losses; for action and event ``distill_{level}``, the divergence
    of their answers from the entity level's; ``distill``, the sum of both.

    ``logit_scale`` is the logarithm of the factor that multiplies similarities, as in CLIP.
    """
    loss, quirks = config.encoder.loss, config.encoder.quirks
    similarities = level_similarities(answered.pairs, quirks, config.encoder.game)
    parts = pair_losses(
        answered.pairs,
        similarities,
        logit_scale,
        config=loss,
        quirks=quirks,
        game=config.encoder.game,
        # A slip of the published question answering alone.
        padded_interaction=quirks.padded_interaction,
    )
    logits = dict(zip(LEVELS, answered.logits, strict=True))
    for level in LEVELS:
        parts[f"{level}_ce"] = answer_loss(logits[level], answered.labels)
        parts[level] = config.pair_loss_weight * parts[level] + parts[f"{level}_ce"]
    entity, *merged_levels = LEVELS
    distillation = {f"distill_{level}": kl_divergence(logits[level], logits[entity]) for level in merged_levels}
    return sum_of_parts(parts, distillation, loss)


def level_similarities(
    features: PairFeatures, quirks: Quirks, game: GameConfig
) -> dict[str, Float[Tensor, "texts videos"]]:
    """Returns the similarity of every text with every video at each level, by the level's name."""
    finest = LEVELS[0]
    return {
        level: level_similarity(
            texts, videos, zero_floor=quirks.zero_floor, coalitions=game.coalitions if level == finest else None
        )
        for level, texts, videos in zip(LEVELS, features.texts, features.videos, strict=True)
    }


def pair_losses(
    features: PairFeatures,
    similarities: dict[str, Float[Tensor, "texts videos"]],
    logit_scale: Float[Tensor, ""],
    *,
    config: LossConfig,
    quirks: Quirks,
    game: GameConfig = PLAIN_GAME,
    padded_interaction: bool = False,
) -> dict[str, Tensor]:
    """Returns the losses of matching pairs at each level, by name.

    For each level: ``{level}_nce_t2v``, ``{level}_nce_v2t`` and their mean ``{level}_nce``; with
    an interaction loss ``{level}_interaction_frames``, ``{level}_interaction_words`` and their
    sum ``{level}_interaction``; ``{level}``, the weighted sum of the two. Where the settings scale targets by
    the batch, ``{level}_target_scale`` is what cosines were multiplied by.
    """
    parts: dict[str, Tensor] = {}
    for index, (level, similarity) in enumerate(similarities.items()):
        logits = logit_scale.exp() * similarity
        parts[f"{level}_nce_t2v"] = contrastive_loss(logits)
        parts[f"{level}_nce_v2t"] = contrastive_loss(logits.t())
        parts[f"{level}_nce"] = (parts[f"{level}_nce_t2v"] + parts[f"{level}_nce_v2t"]) / 2
        parts[level] = parts[f"{level}_nce"]
        if features.interactions:
            masks = features.texts[index].mask, features.videos[index].mask
            interaction = features.interactions[index]
            if game.similarity_scale == "auto":
                scale = entropy_scale(interaction.target, *masks)
                interaction = Interaction(interaction.prediction, scale * interaction.target)
                # The target was made from cosines times game.scale.
                parts[f"{level}_target_scale"] = game.scale * scale
            over_frames, over_words = interaction_loss(
                interaction,
                *(torch.ones_like(mask) if padded_interaction else mask for mask in masks),
                batch_axis_kl=quirks.batch_axis_kl,
            )
            parts[f"{level}_interaction_frames"] = over_frames
            parts[f"{level}_interaction_words"] = over_words
            parts[f"{level}_interaction"] = over_frames + over_words
            parts[level] = parts[level] + config.skl * parts[f"{level}_interaction"]
    return parts


def sum_of_parts(parts: dict[str, Tensor], distillation: dict[str, Tensor], config: LossConfig) -> TrainingLoss:
    """Returns the sum of the levels' losses and the weighted distillation, with all parts and ``distill``."""
    distilled = torch.stack(list(distillation.values())).sum()
    total = torch.stack([parts[level] for level in LEVELS]).sum() + config.kl * distilled
    return TrainingLoss(total, {**parts, **distillation, "distill": distilled})


def answer_loss(logits: Float[Tensor, "pairs answers"], labels: Int[Tensor, " pairs"]) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy of the questions with an answer; 0 without any.

    A label of -1 is a question whose answer is not in the vocabulary; it is left out.
    """
    # The mean of cross_entropy would be NaN without any such question.
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return losses / (labels >= 0).sum().clamp(min=1)


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
        # What ``.T`` makes of three axes.
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
    # With -inf a row without a real cell would be NaN, and so would its gradient, whatever is masked afterwards.
    student, target = (
        logits.masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(dim=dim) for logits in (student, target)
    )
    divergence = target.exp() * (target - student)
    return divergence.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
