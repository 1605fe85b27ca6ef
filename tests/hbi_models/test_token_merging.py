"""Clustering against a slow version in plain Python, and what must not influence a merge."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hbi_models.axes import TokenFeatures
from hbi_models.configs import MergingConfig, Quirks
from hbi_models.draws import BatchDraws
from hbi_models.token_merging import TokenMerge, cluster_tokens, count_clusters, merge_tokens
from tests.hbi_models.tiny_model import DIM, length_mask


def random_tokens(lengths: list[int], max_tokens: int, seed: int = 0) -> TokenFeatures:
    mask = length_mask(lengths, max_tokens)
    return TokenFeatures(torch.randn(*mask.shape, DIM, generator=torch.Generator().manual_seed(seed)), mask)


def merge_module(num_clusters: int, quirks: Quirks | None = None, **merging: Any) -> TokenMerge:
    torch.manual_seed(0)
    return TokenMerge(DIM, num_clusters, config=MergingConfig(heads=4, **merging), quirks=quirks or Quirks())


def slow_clusters(points: list[list[float]], num_clusters: int, neighbours: int) -> list[int]:
    """Returns the cluster of each point of one item without padding, following the definition word by word."""
    count, dim = len(points), len(points[0])
    distance = [[math.dist(p, q) / math.sqrt(dim) for q in points] for p in points]
    density = []
    for row in distance:
        nearest = sorted(row)[:neighbours]
        density.append(math.exp(-sum(d * d for d in nearest) / len(nearest)))
    largest = max(max(row) for row in distance)
    prominence = []
    for p in range(count):
        denser = [q for q in range(count) if (density[q], -q) > (density[p], -p)]
        separation = min((distance[p][q] for q in denser), default=largest)
        prominence.append(density[p] * separation)
    centres = sorted(range(count), key=lambda p: -prominence[p])[:num_clusters]
    return [
        centres.index(p) if p in centres else min(range(len(centres)), key=lambda c: distance[p][centres[c]])
        for p in range(count)
    ]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    num_clusters=st.integers(1, 5),
    neighbours=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_clusters_equal_those_of_the_definition(
    lengths: list[int], num_clusters: int, neighbours: int, seed: int
) -> None:
    tokens = random_tokens(lengths, 9, seed)
    # Double precision, because with two neighbours mutual nearest tokens tie up to rounding.
    clusters = cluster_tokens(tokens.features.double(), tokens.mask, num_clusters=num_clusters, neighbours=neighbours)
    assert clusters.shape[2] == num_clusters
    for item, length in enumerate(lengths):
        points = tokens.features[item, :length].double().tolist()
        assert not clusters[item, length:].any()
        actual = clusters[item, :length].int().argmax(dim=-1).tolist()
        assert actual == slow_clusters(points, num_clusters, neighbours)


def test_every_real_token_is_in_one_cluster() -> None:
    tokens = random_tokens([7, 3, 1, 0], 7)
    clusters = cluster_tokens(tokens.features, tokens.mask, num_clusters=4, neighbours=3)
    assert torch.equal(clusters.sum(dim=2), tokens.mask.int())
    assert clusters.any(dim=1).sum(dim=1).tolist() == [4, 3, 1, 0]


def test_equal_tokens_become_centres_in_their_order() -> None:
    tokens = torch.ones(1, 5, DIM)
    clusters = cluster_tokens(tokens, torch.ones(1, 5, dtype=torch.bool), num_clusters=3, neighbours=3)
    assert clusters.int().argmax(dim=-1).tolist() == [[0, 1, 2, 0, 0]]


@torch.no_grad()
def test_an_item_is_merged_alike_in_any_company_and_with_any_padding() -> None:
    merge, tokens = merge_module(4).eval(), random_tokens([9, 5, 2, 3], 9)
    together = merge(tokens)
    for item, length in enumerate([9, 5, 2, 3]):
        for width in {length, max(length, 4), 9}:
            features = tokens.features[item : item + 1, :width].clone()
            features[:, length:] = 100.0
            alone = merge(TokenFeatures(features, length_mask([length], width)))
            real = alone.mask[0]
            assert real.sum() == together.mask[item].sum() == min(length, 4)
            torch.testing.assert_close(alone.features[0, real], together.features[item, together.mask[item]])


@torch.no_grad()
def test_permuting_items_permutes_results() -> None:
    merge, tokens = merge_module(4).eval(), random_tokens([9, 5, 2, 3], 9)
    order = torch.tensor([2, 0, 3, 1])
    merged, permuted = merge(tokens), merge(TokenFeatures(tokens.features[order], tokens.mask[order]))
    torch.testing.assert_close(permuted.features, merged.features[order])
    assert torch.equal(permuted.mask, merged.mask[order])


@pytest.mark.parametrize("coupled", [False, True])
def test_company_far_away_matters_in_coupled_clustering_only(coupled: bool) -> None:
    """With fewer real tokens than neighbours the published density reaches for the batch's largest distance."""
    item = torch.tensor([[0.0], [2.0], [1.1], [0.0]])
    mask = length_mask([3, 4], 4)
    first_centres = []
    for scale in (1.0, 1000.0):
        tokens = torch.stack([item, scale * torch.arange(4.0)[:, None]])
        clusters = cluster_tokens(tokens, mask, num_clusters=3, neighbours=4, coupled=coupled)
        first_centres.append(clusters[0, :, 0].int().argmax().item())
    # The token in the middle is the densest, unless all densities vanish.
    assert first_centres == ([2, 0] if coupled else [2, 2])


@pytest.mark.parametrize("encode_padding", [False, True])
@torch.no_grad()
def test_the_convolution_reads_padding_only_as_a_quirk(encode_padding: bool) -> None:
    merge, tokens = merge_module(3, Quirks(encode_padding=encode_padding)), random_tokens([9, 5], 9)
    other = torch.where(tokens.mask[:, :, None], tokens.features, 100.0)
    first, second = (merge.prepare(TokenFeatures(f, tokens.mask))[0][1, 4] for f in (tokens.features, other))
    assert ((first - second).abs().max() > 1e-3) == encode_padding


@torch.no_grad()
def test_surplus_clusters_are_padding_unless_published() -> None:
    tokens = random_tokens([2, 6], 6)
    assert merge_module(4)(tokens).mask.tolist() == [[True, True, False, False], [True] * 4]
    assert merge_module(4, Quirks(surplus_clusters=True))(tokens).mask.all()


def test_an_item_without_tokens_is_finite_and_has_finite_gradients() -> None:
    merge, tokens = merge_module(3), random_tokens([0, 4], 5)
    merged = merge(tokens)
    assert merged.features.isfinite().all()
    assert merged.mask.tolist() == [[False] * 3, [True] * 3]
    merged.features.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in merge.parameters())


def test_merged_tokens_are_weighted_means() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]]])
    clusters = torch.tensor([[[True, False, False], [True, False, False], [False, True, False]]])
    merged = merge_tokens(tokens, clusters, torch.tensor([[1.0, 3.0, 0.5]]))
    expected = torch.tensor([[[0.25, 0.75], [4.0, 4.0], [0.0, 0.0]]])
    # The published denominator carries a small extra term.
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_block_adds_attention_biased_by_scores() -> None:
    block = merge_module(2).block
    merged, tokens = torch.randn(2, 2, DIM), torch.randn(2, 5, DIM)
    scores = torch.randn(2, 5)
    scores[0, 3:] = -torch.inf
    query = block.query(block.norm(merged)).unflatten(-1, (4, -1)).transpose(1, 2)
    key, value = (
        part.unflatten(-1, (4, -1)).transpose(1, 2) for part in block.key_value(block.norm(tokens)).chunk(2, dim=-1)
    )
    logits = query @ key.transpose(-1, -2) / math.sqrt(DIM // 4) + scores[:, None, None, :]
    attended = (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block(merged, tokens, scores), merged + block.projection(attended))


def test_gradients_reach_every_parameter_and_the_tokens() -> None:
    merge, tokens = merge_module(3), random_tokens([6, 4], 6)
    features = tokens.features.requires_grad_()
    merge(TokenFeatures(features, tokens.mask)).features.square().sum().backward()
    gradients = [parameter.grad for parameter in merge.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    reached = features.grad.abs().sum(dim=-1) > 0
    assert torch.equal(reached, tokens.mask)


def clusters_with_noise(merge: TokenMerge, tokens: Tensor, seed: int) -> Tensor:
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return merge.cluster(tokens, mask, BatchDraws(seed, batch_size=len(tokens)))


def test_noise_breaks_ties_by_the_given_draws_in_training_only() -> None:
    merge, tokens = merge_module(3, tie_break_noise=1e-3), torch.eye(DIM)[None, :8]
    first = clusters_with_noise(merge, tokens, seed=1)
    assert torch.equal(first, clusters_with_noise(merge, tokens, seed=1))
    assert not torch.equal(first, clusters_with_noise(merge, tokens, seed=2))
    with pytest.raises(ValueError, match="no draws to take it from"):
        merge.cluster(tokens, torch.ones(1, 8, dtype=torch.bool))
    merge.eval()
    assert torch.equal(clusters_with_noise(merge, tokens, seed=1), clusters_with_noise(merge, tokens, seed=2))


def test_at_least_one_token_is_left() -> None:
    assert [count_clusters(tokens, 0.25) for tokens in (1, 4, 5, 24)] == [1, 1, 2, 6]


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"merging\.heads is 5"):
        TokenMerge(DIM, 3, config=MergingConfig(heads=5), quirks=Quirks())
