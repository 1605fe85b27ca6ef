"""The retrieval head as one writes it down from the paper: the baseline of the rows about it.

Three levels of tokens, the similarity of all pairs and the losses (arXiv 2303.14369), with the behaviour of the
published code (``Quirks.published()``) and its whole tensors: every cosine of a batch at once, every cell of a pair
attending to every cell. Weights are those of a ``RetrievalModel``; the mathematics is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hbi_models.axes import TokenFeatures
from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel
from hbi_models.token_merging import MergeBlock, TokenMerge


@dataclass(frozen=True)
class Level:
    """Tokens of length 1, 0 at padding, and the weights of their importance."""

    tokens: Tensor
    """[items, tokens, dim]."""
    weights: Tensor
    """[items, tokens]."""
    mask: Tensor
    """[items, tokens], 1 at real tokens."""


def training_loss(model: RetrievalModel, words: TokenFeatures, frames: TokenFeatures) -> Tensor:
    """The whole loss of a batch of matching pairs."""
    texts = hierarchy(words, model.text_merges, model.text_importance)
    videos = hierarchy(frames, model.video_merges, model.video_importance)
    scores = [similarity(text, video) for text, video in zip(texts, videos, strict=True)]
    total = torch.zeros(())
    for level, text, video, score in zip(LEVELS, texts, videos, scores, strict=True):
        logits = model.clip.logit_scale.exp() * score
        total = total + (cross_entropy(logits) + cross_entropy(logits.t())) / 2
        total = total + model.config.loss.skl * interaction_loss(model, level, text, video)
    entity = scores[0]
    for score in scores[1:]:
        total = total + model.config.loss.kl * (divergence(score, entity) + divergence(score.t(), entity.t()))
    return total


def hierarchy(tokens: TokenFeatures, merges: nn.ModuleDict, importance: nn.ModuleDict) -> list[Level]:
    """Entity, action and event level."""
    features, mask = tokens.features, tokens.mask.float()
    levels = []
    for name in LEVELS:
        if name in merges:
            features = merge(merges[name], features, mask)
            mask = torch.ones(features.shape[:2])
        logits = importance[name](features).squeeze(-1)
        weights = logits.masked_fill(mask == 0, -9e15).softmax(dim=-1)
        levels.append(Level(F.normalize(features, dim=-1) * mask[:, :, None], weights, mask))
    return levels


def merge(module: TokenMerge, features: Tensor, mask: Tensor) -> Tensor:
    """Clusters tokens, averages each cluster by learned weights, and lets the averages attend to the tokens."""
    mixed = module.norm(features + module.conv(features.transpose(1, 2)).transpose(1, 2))
    scores = module.score(mixed).squeeze(-1).masked_fill(mask == 0, -torch.inf)
    clusters = F.one_hot(
        density_peaks(mixed.detach(), mask, module.num_clusters, module.neighbours), module.num_clusters
    )
    weights = clusters * scores.exp()[:, :, None]
    merged = (weights / (weights.sum(dim=1, keepdim=True) + 1e-6)).transpose(1, 2) @ mixed
    return merged + attention(module.block, merged, mixed, scores)


def density_peaks(tokens: Tensor, mask: Tensor, num_clusters: int, neighbours: int) -> Tensor:
    """The cluster of each token, [items, tokens]: the nearest of the densest tokens far from denser ones."""
    # Clusters change with the rounding of distances: the exact form, which ours has, too.
    distances = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(tokens.shape[-1])
    # Padding is farther from everything than any token, so it is a neighbour only where real ones are too few.
    distances = torch.where(mask[:, None, :] > 0, distances, distances.max() + 1)
    nearest = distances.topk(neighbours, dim=-1, largest=False).values
    density = (-nearest.square().mean(dim=-1)).exp() * mask
    denser = density[:, None, :] > density[:, :, None]
    farthest = distances.flatten(1).amax(dim=-1)[:, None, None]
    separation = torch.where(denser, distances, farthest).amin(dim=-1)
    centres = (density * separation).topk(num_clusters, dim=-1).indices
    to_centres = distances.gather(2, centres[:, None, :].expand(-1, tokens.shape[1], -1))
    assigned = to_centres.argmin(dim=-1)
    return assigned.scatter(1, centres, torch.arange(num_clusters).expand_as(centres))


def attention(block: MergeBlock, merged: Tensor, tokens: Tensor, scores: Tensor) -> Tensor:
    """Of the merged tokens to those that they were made of, with a bias for important ones."""
    items, clusters, dim = merged.shape
    query = block.query(block.norm(merged)).view(items, clusters, block.heads, -1).transpose(1, 2)
    key, value = block.key_value(block.norm(tokens)).chunk(2, dim=-1)
    key, value = (part.reshape(items, tokens.shape[1], block.heads, -1).transpose(1, 2) for part in (key, value))
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + scores[:, None, None, :]
    attended = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(items, clusters, dim)
    return block.projection(attended)


def similarity(texts: Level, videos: Level) -> Tensor:
    """Weighted token-wise interaction of every text with every video."""
    cosines = torch.einsum("atd,bvd->abtv", texts.tokens, videos.tokens)
    best_frame, best_word = cosines.max(dim=3).values, cosines.max(dim=2).values
    through_words = torch.einsum("abt,at->ab", best_frame, texts.weights)
    through_frames = torch.einsum("abv,bv->ab", best_word, videos.weights)
    return (through_words + through_frames) / 2


def interaction_loss(model: RetrievalModel, level: str, text: Level, video: Level) -> Tensor:
    """Of the interactions of matching pairs, predicted and taught."""
    cosines = torch.einsum("btd,bvd->btv", text.tokens, video.tokens)
    cells = text.mask[:, :, None] * video.mask[:, None, :]
    predicted = estimate(model.predictors[level], cosines) * cells
    assert model.teacher is not None
    with torch.no_grad():
        target = estimate(model.teacher, cosines) * cells
    # The second one is over the pairs of the batch, as published.
    return divergence(predicted, target) + divergence(predicted.permute(2, 1, 0), target.permute(2, 1, 0))


def estimate(network: InteractionEstimator, cosines: Tensor) -> Tensor:
    """Two convolutions around self-attention over the grid of words and frames, [pairs, words, frames]."""
    hidden = network.conv_in(cosines[:, None]).relu()
    cells = hidden.flatten(2).transpose(1, 2)
    query, key, value = cells @ network.query, cells @ network.key, cells @ network.value
    attended = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
    return network.conv_out((cells + attended).transpose(1, 2).reshape(hidden.shape)).squeeze(1)


def cross_entropy(logits: Tensor) -> Tensor:
    """Of each row, whose match is on the diagonal."""
    return F.cross_entropy(logits, torch.arange(len(logits)))


def divergence(student: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence over the last axis, the mean over all elements."""
    return F.kl_div(student.log_softmax(dim=-1), target.softmax(dim=-1), reduction="none").mean()
