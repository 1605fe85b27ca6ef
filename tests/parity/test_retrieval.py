"""The retrieval model against the published one: forward, losses, gradients (cases a, a2, b, b2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from hbi_models.axes import PairFeatures, TokenFeatures
from hbi_models.configs import LEVELS
from hbi_models.losses import TrainingLoss, retrieval_loss
from hbi_models.published_weights import retrieval_prefixes
from hbi_models.retrieval import RetrievalModel
from hbi_models.similarity import level_similarity, token_cosines, token_weights
from hbi_models.token_merging import merge_tokens
from tests.parity.conftest import Golden
from tests.parity.published_model import (
    LOSSES,
    assert_features_equal,
    batches,
    check_gradients,
    check_level_losses,
    published_model,
)

pytestmark = pytest.mark.slow


def token_features(arrays: Mapping[str, np.ndarray]) -> tuple[TokenFeatures, TokenFeatures]:
    """Returns the word and frame features of a golden file as leaves of the graph."""
    return tuple(
        TokenFeatures(
            torch.from_numpy(arrays[f"{modality}_feat"]).requires_grad_(),
            torch.from_numpy(arrays[f"{modality}_mask"]).bool(),
        )
        for modality in ("text", "video")
    )


@torch.no_grad()
def test_encoders_equal_the_published_ones(golden: Golden, tmp_path: Path) -> None:
    arrays = golden.arrays("a_retrieval_forward")
    model = published_model(golden, "ret", int(arrays["weight_seed"]), tmp_path).eval()
    texts, videos = batches(arrays)
    text, *_ = model.encode_text(texts)
    video, *_ = model.encode_video(videos)
    assert_features_equal(text.features, arrays["text_feat"], "words, padding included")
    assert_features_equal(video.features, arrays["video_feat"], "frames")
    at_largest_id = text.features[torch.arange(len(text.features)), texts.token_ids.argmax(dim=-1)]
    assert_features_equal(at_largest_id, arrays["cls"], "end token")
    frames = model.clip.encode_frames(videos.pixels.flatten(0, 1))
    assert_features_equal(
        frames.unflatten(0, videos.mask.shape), arrays["frame_feat"], "frames before the temporal encoder"
    )


@pytest.mark.parametrize(("case", "file"), [("ret", "a_retrieval_forward"), ("heads", "a2_heads_forward")])
@torch.no_grad()
def test_levels_and_similarities_equal_the_published_ones(golden: Golden, tmp_path: Path, case: str, file: str) -> None:
    arrays = golden.arrays(file)
    model = published_model(golden, case, int(arrays["weight_seed"]), tmp_path).eval()
    words, frames = token_features(arrays)
    texts, videos = model.text_hierarchy(words), model.video_hierarchy(frames)
    for name, text, video in zip(LEVELS, texts, videos, strict=True):
        assert_features_equal(token_weights(text), arrays[f"{name}_text_weight"], f"{name} text weights")
        assert_features_equal(token_weights(video), arrays[f"{name}_video_weight"], f"{name} video weights")
        assert_features_equal(token_cosines(text, video), arrays[f"{name}_raw_diag"], f"{name} cosines")
        assert_features_equal(
            level_similarity(text, video, zero_floor=True), arrays[f"{name}_t2v"], f"{name} similarity"
        )
        if name != "entity":
            assert_features_equal(text.features, arrays[f"{name}_text"], f"{name} texts")
            assert_features_equal(video.features, arrays[f"{name}_video"], f"{name} videos")
    mixes = [name for name in arrays if name.startswith("sim_rate")]
    assert mixes
    for name in mixes:
        rates = [float(rate) for rate in name.removeprefix("sim_rate").split("_")]
        assert_features_equal(model.similarity(texts, videos, rates), arrays[name], name)


@pytest.mark.parametrize(("case", "file"), [("ret", "a_retrieval_forward"), ("heads", "a2_heads_forward")])
@torch.no_grad()
def test_a_smaller_batch_gives_the_published_rectangular_similarities(
    golden: Golden, tmp_path: Path, case: str, file: str
) -> None:
    """The published clustering couples the items of a batch, so the smaller batch is encoded anew."""
    arrays = golden.arrays(file)
    model = published_model(golden, case, int(arrays["weight_seed"]), tmp_path).eval()
    words, frames = token_features(arrays)
    num_texts, num_videos = arrays["sim_rect"].shape
    texts = model.text_hierarchy(TokenFeatures(words.features[:num_texts], words.mask[:num_texts]))
    videos = model.video_hierarchy(TokenFeatures(frames.features[-num_videos:], frames.mask[-num_videos:]))
    assert_features_equal(model.similarity(texts, videos, (0.5, 0.3, 0.2)), arrays["sim_rect"], "rectangle")


@pytest.mark.parametrize(("case", "file"), [("ret", "a_retrieval_forward"), ("heads", "a2_heads_forward")])
@torch.no_grad()
def test_merges_give_the_published_clusters(golden: Golden, tmp_path: Path, case: str, file: str) -> None:
    arrays = golden.arrays(file)
    model = published_model(golden, case, int(arrays["weight_seed"]), tmp_path).eval()
    words, frames = token_features(arrays)
    for letter, tokens, merges in (("t", words, model.text_merges), ("v", frames, model.video_merges)):
        for number, level in enumerate(LEVELS[1:]):
            merge = merges[level]
            features, scores = merge.prepare(tokens)
            clusters = merge.cluster(features, tokens.mask)
            expected = torch.from_numpy(arrays[f"ctm_{letter}{number}_idx"])
            assert torch.equal(clusters.int().argmax(dim=-1)[tokens.mask], expected[tokens.mask]), (letter, level)
            assert_features_equal(
                scores.exp(), arrays[f"ctm_{letter}{number}_token_weight"], f"{letter}{number} weights"
            )
            if f"ctm_{letter}{number}_x" in arrays:
                assert_features_equal(features, arrays[f"ctm_{letter}{number}_x"], f"{letter}{number} tokens")
            merged = merge_tokens(features, clusters, scores.exp())
            assert_features_equal(merged, arrays[f"ctm_{letter}{number}_merged"], f"{letter}{number} merged")
            tokens = merge(tokens)


def check_losses(loss: TrainingLoss, arrays: Mapping[str, np.ndarray]) -> None:
    """Compares the total and every part with its published value."""
    names = check_level_losses(loss, arrays)
    expected = {"distill": float(arrays["distill_sum"])}
    expected |= {level: float(arrays[f"loss_{level}"]) for level in LEVELS[1:]}
    expected |= {
        f"distill_{direction}_{level}": float(arrays[f"distill_{direction}_{level}"])
        for direction in ("t2v", "v2t")
        for level in LEVELS[1:]
    }
    assert {name: loss.parts[name].item() for name in expected} == pytest.approx(expected, **LOSSES)
    assert loss.total.item() == pytest.approx(float(arrays["loss_total"]), **LOSSES)
    assert loss.parts.keys() == names | expected.keys() | {"entity"}


def loss_of(model: RetrievalModel, features: PairFeatures) -> TrainingLoss:
    return retrieval_loss(features, model.clip.logit_scale, config=model.config.loss, quirks=model.config.quirks)


def test_losses_and_gradients_equal_the_published_ones(golden: Golden, tmp_path: Path) -> None:
    arrays, inputs = golden.arrays("b_retrieval_loss"), golden.arrays("a_retrieval_forward")
    model = published_model(golden, "ret", int(arrays["weight_seed"]), tmp_path)
    loss = loss_of(model, model(*batches(inputs)))
    loss.total.backward()
    check_losses(loss, arrays)
    check_gradients(model, arrays, retrieval_prefixes())


def test_losses_and_gradients_of_the_heads_equal_the_published_ones(golden: Golden, tmp_path: Path) -> None:
    arrays, inputs = golden.arrays("b2_heads_loss"), golden.arrays("a2_heads_forward")
    model = published_model(golden, "heads", int(arrays["weight_seed"]), tmp_path)
    words, frames = token_features(inputs)
    loss = loss_of(model, model.relate(model.text_hierarchy(words), model.video_hierarchy(frames)))
    loss.total.backward()
    check_losses(loss, arrays)
    check_gradients(model, arrays, retrieval_prefixes())
    for tokens, name in ((words, "grad_text_feat"), (frames, "grad_video_feat")):
        tolerance = 1e-4 * float(np.abs(arrays[name]).max())
        torch.testing.assert_close(tokens.features.grad, torch.from_numpy(arrays[name]), rtol=1e-3, atol=tolerance)
