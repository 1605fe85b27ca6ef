"""Clustering, merging and the merge block against the published ones (case c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import TokenFeatures
from hbi_models.configs import MergingConfig, Quirks
from hbi_models.published_weights import MERGE_MODULES
from hbi_models.token_merging import TokenMerge, cluster_tokens, count_clusters, merge_tokens
from tests.parity.conftest import Golden
from tests.parity.published_model import assert_features_equal


def cases(golden: Golden) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    """Returns the golden clusterings with their tags; skips where the folder holds none.

    The arrays hold the ratio in float32, whose rounding can move the next integer above it, so
    it is replaced by the one the data were made with.
    """
    ratios = {case["tag"]: np.float64(case["ratio"]) for case in golden.json("config")["clu"]}
    found = [
        (tag, {**golden.arrays(f"c_cluster_{tag}"), "ratio": ratio})
        for tag, ratio in ratios.items()
        if golden.has(f"c_cluster_{tag}")
    ]
    if not found:
        pytest.skip(f"{golden.folder} holds no c_cluster_*.npz")
    return found


def tokens_of(arrays: Mapping[str, np.ndarray]) -> TokenFeatures:
    features = torch.from_numpy(arrays["x"])
    mask = torch.from_numpy(arrays["mask"]).bool() if "mask" in arrays else torch.ones(features.shape[:2]).bool()
    return TokenFeatures(features, mask)


def published_merge(golden: Golden, arrays: Mapping[str, np.ndarray]) -> TokenMerge:
    """Returns the merge module with the golden weights."""
    (_, num_tokens, dim), heads = arrays["x"].shape, int(arrays["heads"])
    shapes: dict[str, Any] = golden.json("keys_cluster")[f"C{dim}_heads{heads}"]
    weights = golden.recipe.fill_all(shapes, int(arrays["weight_seed"]))
    names = {theirs.replace("{}", ""): ours for theirs, ours in MERGE_MODULES.items()}
    merge = TokenMerge(
        dim,
        count_clusters(num_tokens, float(arrays["ratio"])),
        config=MergingConfig(neighbours=int(arrays["k"]), heads=heads),
        quirks=Quirks.published(),
    )
    renamed = {
        ours + name.removeprefix(theirs): torch.from_numpy(weights[name])
        for name in weights
        for theirs, ours in names.items()
        if name.startswith(theirs)
    }
    merge.load_state_dict(renamed)
    return merge.eval()


def one_hot(ids: np.ndarray, num_clusters: int) -> Tensor:
    return F.one_hot(torch.from_numpy(ids), num_clusters).bool()


def test_tokens_fall_into_the_published_clusters(golden: Golden) -> None:
    for tag, arrays in cases(golden):
        tokens = tokens_of(arrays)
        num_clusters = count_clusters(tokens.features.shape[1], float(arrays["ratio"]))
        assert num_clusters == int(arrays["cluster_num"]), tag
        clusters = cluster_tokens(
            tokens.features, tokens.mask, num_clusters=num_clusters, neighbours=int(arrays["k"]), coupled=True
        )
        expected = one_hot(arrays["idx_cluster"], num_clusters) & tokens.mask[:, :, None]
        assert torch.equal(clusters, expected), tag


def test_means_within_clusters_equal_the_published_ones(golden: Golden) -> None:
    for tag, arrays in cases(golden):
        tokens = torch.from_numpy(arrays["x"])
        clusters = one_hot(arrays["idx_cluster"], int(arrays["cluster_num"]))
        weights = torch.from_numpy(arrays["token_weight"])
        for name, used in (("merged", weights), ("merged_uniform", torch.ones_like(weights))):
            merged = merge_tokens(tokens, clusters, used)
            assert_features_equal(merged, arrays[name], f"{tag} {name}")


@torch.no_grad()
def test_merge_and_block_equal_the_published_ones(golden: Golden) -> None:
    for tag, arrays in cases(golden):
        merge, tokens = published_merge(golden, arrays), tokens_of(arrays)
        features, scores = merge.prepare(tokens)
        clusters = merge.cluster(features, tokens.mask)
        merged = merge_tokens(features, clusters, scores.exp())
        block = merge(tokens).features
        expected_clusters = one_hot(arrays["ctm_idx_cluster"], int(arrays["cluster_num"]))
        assert torch.equal(clusters, expected_clusters & tokens.mask[:, :, None]), tag
        for actual, name in (
            (features, "ctm_token_x"),
            (scores, "ctm_token_score"),
            (merged, "ctm_down_x"),
            (block, "block_out"),
        ):
            assert_features_equal(actual, arrays[name].reshape(actual.shape), f"{tag} {name}")
