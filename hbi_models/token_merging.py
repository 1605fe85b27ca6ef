"""Token merging by density-peak clustering: words into phrases, frames into actions.

The hierarchy of arXiv 2303.14369: tokens are clustered by DPC-KNN (Du et al.,
*Study on density peaks clustering based on k-nearest neighbors*, 2016; for tokens, Zeng et
al., arXiv 2204.08680), averaged within clusters by learned weights, and refined by attention
from the clusters to the tokens they came from.

Unless a quirk asks for the published behaviour, an item's result depends only on its own real tokens, and not on its
batch or its padding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hbi_models.axes import TokenFeatures, at_least_float32
from hbi_models.config_fields import require
from hbi_models.configs import MergingConfig, Quirks
from hbi_models.draws import BatchDraws
from hbi_models.transfer import sent


def count_clusters(num_tokens: int, rate: float) -> int:
    """Returns how many tokens are left of ``num_tokens`` after a merge: at least one."""
    return max(math.ceil(num_tokens * rate), 1)


class TokenMerge(nn.Module):
    """One step up the hierarchy, for one modality."""

    def __init__(self, dim: int, num_clusters: int, *, config: MergingConfig, quirks: Quirks) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)
        self.block = MergeBlock(dim, heads=config.heads)
        self.num_clusters = num_clusters
        self.neighbours = config.neighbours
        self.tie_break_noise = config.tie_break_noise
        self.quirks = quirks

    def forward(self, tokens: TokenFeatures, draws: BatchDraws | None = None) -> TokenFeatures:
        """Returns one token per cluster, best centre first; the mask tells clusters with real tokens.

        ``draws`` gives the tie-break noise in training, where the settings ask for it.
        """
        features, scores = self.prepare(tokens)
        clusters = self.cluster(features, tokens.mask, draws)
        merged = merge_tokens(features, clusters, scores.exp())
        mask = clusters.any(dim=1)
        if self.quirks.surplus_clusters:
            mask = torch.ones_like(mask)
        return TokenFeatures(at_least_float32(self.block(merged, features, scores)), mask)

    def prepare(self, tokens: TokenFeatures) -> tuple[Float[Tensor, "items tokens dim"], Float[Tensor, "items tokens"]]:
        """Returns the tokens mixed with their neighbours in order, and their scores, -inf at padding."""
        features = tokens.features
        # The convolution reads neighbours. Zeros at padding make its result the one without any padding.
        if not self.quirks.encode_padding:
            features = features * rearrange(tokens.mask, "items tokens -> items tokens 1")
        mixed = self.conv(rearrange(features, "items tokens dim -> items dim tokens"))
        features = self.norm(features + rearrange(mixed, "items dim tokens -> items tokens dim"))
        scores = rearrange(at_least_float32(self.score(features)), "items tokens 1 -> items tokens")
        return features, scores.masked_fill(~tokens.mask, -torch.inf)

    def cluster(
        self,
        features: Float[Tensor, "items tokens dim"],
        mask: Bool[Tensor, "items tokens"],
        draws: BatchDraws | None = None,
    ) -> Bool[Tensor, "items tokens clusters"]:
        """Returns which token belongs to which cluster, as the settings ask for it."""
        return cluster_tokens(
            features,
            mask,
            num_clusters=self.num_clusters,
            neighbours=self.neighbours,
            coupled=self.quirks.coupled_clustering,
            density_noise=self._draw_noise(mask, draws),
        )

    def _draw_noise(
        self, mask: Bool[Tensor, "items tokens"], draws: BatchDraws | None
    ) -> Float[Tensor, "items tokens"] | None:
        if not self.training or self.tie_break_noise == 0:
            return None
        if draws is None:
            raise ValueError(
                f"merging.tie_break_noise is {self.tie_break_noise}, but training got no draws to take it from; "
                "pass BatchDraws, or set the noise to 0"
            )
        return self.tie_break_noise * sent(draws.uniform(mask.shape), mask.device)


class MergeBlock(nn.Module):
    """Attention from merged tokens to the unmerged ones, whose scores bias it; residual, no MLP."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        require(dim % heads == 0, f"merging.heads is {heads}, which does not divide the {dim} channels of a token")
        # For the merged tokens and for the others, as published.
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.projection = nn.Linear(dim, dim)
        self.heads = heads
        for layer in (self.query, self.key_value, self.projection):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        merged: Float[Tensor, "items clusters dim"],
        tokens: Float[Tensor, "items tokens dim"],
        scores: Float[Tensor, "items tokens"],
    ) -> Float[Tensor, "items clusters dim"]:
        """Returns the merged tokens plus what they attend to; ``scores`` are -inf at padding."""
        query = rearrange(
            self.query(self.norm(merged)), "items clusters (heads c) -> items heads clusters c", heads=self.heads
        )
        key, value = rearrange(
            self.key_value(self.norm(tokens)),
            "items tokens (two heads c) -> two items heads tokens c",
            two=2,
            heads=self.heads,
        )
        # Finite, so that an item without any real token gives finite padding instead of NaN.
        bias = rearrange(
            scores.clamp(min=torch.finfo(query.dtype).min).to(query.dtype), "items tokens -> items 1 1 tokens"
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = rearrange(attended, "items heads clusters c -> items clusters (heads c)")
        refined: Tensor = merged + self.projection(attended)
        return refined


@torch.no_grad()
def cluster_tokens(
    tokens: Float[Tensor, "items tokens dim"],
    mask: Bool[Tensor, "items tokens"],
    *,
    num_clusters: int,
    neighbours: int,
    coupled: bool = False,
    density_noise: Float[Tensor, "items tokens"] | None = None,
) -> Bool[Tensor, "items tokens clusters"]:
    """Returns which real token belongs to which cluster, by density peaks of nearest neighbours.

    Clusters are ordered by density times separation of their centres; ties go to the first
    token. A token's density falls with the mean squared distance to its ``neighbours`` nearest
    real tokens, itself included, or to all of them where an item has fewer. There are
    ``num_clusters`` clusters, or as many as tokens if those are fewer; an item with still fewer
    real tokens leaves the last clusters empty.

    Args:
        tokens: Features, whose distances are divided by the root of their number.
        mask: The real tokens.
        num_clusters: Clusters per item.
        neighbours: k of the k-nearest-neighbour density.
        coupled: Published mistake: padding lies one unit further away than the largest distance in the whole batch,
            instead of infinitely far.
        density_noise: Added to the densities.
    """
    distances = pairwise_distances(tokens) / math.sqrt(tokens.shape[-1])
    far = distances.max() + 1 if coupled else torch.inf
    distances = torch.where(rearrange(mask, "items tokens -> items 1 tokens"), distances, far)
    densities = local_densities(distances, neighbours)
    if density_noise is not None:
        densities = densities + density_noise
    # Distances are far in the columns of padding only: its rows have densities, which must not count.
    peaks = densities.mul(mask)
    # Not 0 at padding: a real token that equals an earlier one has prominence 0, and goes first.
    prominence = (peaks * separations(distances, peaks, mask)).masked_fill(~mask, -torch.inf)
    order = falling_stably(prominence)
    centres = order[:, : min(num_clusters, tokens.shape[1])]
    to_centres = distances.gather(2, centres[:, None, :].expand(-1, tokens.shape[1], -1))
    nearest = to_centres.argmin(dim=-1)
    # A centre that equals an earlier one is as near to that; its own cluster must not be empty.
    nearest.scatter_(1, centres, torch.arange(centres.shape[1], device=centres.device).expand_as(centres))
    return F.one_hot(nearest, centres.shape[1]).bool() & rearrange(mask, "items tokens -> items tokens 1")


def pairwise_distances(tokens: Float[Tensor, "items tokens dim"]) -> Float[Tensor, "items tokens tokens"]:
    """Returns the Euclidean distances of the tokens of each item, exactly 0 to itself."""
    if torch.compiler.is_exporting():  # ONNX has no cdist
        return (tokens[:, :, None] - tokens[:, None]).square().sum(dim=-1).sqrt()
    # By default cdist multiplies matrices for more than 25 tokens, where rounding moves a token away from itself.
    return torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")


def falling_stably(values: Float[Tensor, "items tokens"]) -> Int[Tensor, "items tokens"]:
    """Returns the places of the values, the largest first, and of equal ones the first."""
    if torch.compiler.is_exporting():  # ONNX's sort is stable without being asked
        return values.argsort(dim=-1, descending=True)
    return values.sort(dim=-1, descending=True, stable=True).indices


def local_densities(distances: Float[Tensor, "items tokens others"], neighbours: int) -> Float[Tensor, "items tokens"]:
    """Returns exp(-mean squared distance to the nearest others); infinite distances do not count."""
    nearest = distances.topk(min(neighbours, distances.shape[-1]), dim=-1, largest=False).values
    within_reach = nearest.isfinite()
    squares = torch.where(within_reach, nearest, 0).square().sum(dim=-1)
    return torch.exp(-squares / within_reach.sum(dim=-1).clamp(min=1))


def separations(
    distances: Float[Tensor, "items tokens others"],
    densities: Float[Tensor, "items tokens"],
    mask: Bool[Tensor, "items tokens"],
) -> Float[Tensor, "items tokens"]:
    """Returns each token's distance to the nearest denser one; the densest token's is the item's largest.

    Of two equally dense tokens the first counts as denser. Values at padding are unspecified.
    """
    own = rearrange(densities, "items tokens -> items tokens 1")
    other = rearrange(densities, "items others -> items 1 others")
    # In the row of a token: those before it.
    earlier = torch.ones_like(distances[0], dtype=torch.bool).tril(diagonal=-1)
    denser = (other > own) | ((other == own) & earlier)
    within_reach = distances.isfinite() & rearrange(mask, "items tokens -> items tokens 1")
    largest = torch.where(within_reach, distances, 0).amax(dim=(1, 2))
    return torch.where(denser, distances, rearrange(largest, "items -> items 1 1")).amin(dim=-1)


def merge_tokens(
    tokens: Float[Tensor, "items tokens dim"],
    clusters: Bool[Tensor, "items tokens clusters"],
    weights: Float[Tensor, "items tokens"],
) -> Float[Tensor, "items clusters dim"]:
    """Returns the weighted mean of each cluster's tokens; 0 for a cluster without tokens."""
    shares = clusters * rearrange(weights, "items tokens -> items tokens 1")
    # The small number is the published one; it keeps an empty cluster from being 0 / 0.
    shares = shares / (shares.sum(dim=1, keepdim=True) + 1e-6)
    return rearrange(shares, "items tokens clusters -> items clusters tokens") @ tokens
