"""The models of the golden cases: published settings, sizes from the golden folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import (
    LEVELS,
    AnswerHeadConfig,
    GameConfig,
    LossConfig,
    MergingConfig,
    Quirks,
    RetrievalConfig,
    TemporalConfig,
    VideoQAConfig,
    published_video_qa_encoder,
)
from hbi_models.losses import TrainingLoss
from hbi_models.published_weights import our_name, retrieval_from_published, video_qa_from_published
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from tests.parity.conftest import Golden

KEYS = {"ret": "keys_retrieval", "heads": "keys_retrieval_heads"}

# Our names of a level's losses, and the published ones.
PAIR_LOSSES = {
    "nce_t2v": "nce_t2v",
    "nce_v2t": "nce_v2t",
    "nce": "nce",
    "interaction_frames": "s_kl",
    "interaction_words": "s_kl_T",
    "interaction": "s_loss",
}

# What a second run of the published code with other kernels suggests (README of the data).
FEATURES = {"rtol": 1e-4, "atol": 2e-5}
LOSSES = {"rel": 1e-4, "abs": 1e-6}
GRADIENTS = {"rel": 1e-3, "abs": 1e-7}


def published_model(golden: Golden, case: str, weight_seed: int, folder: Path) -> RetrievalModel:
    """Returns the model of case ``ret`` or ``heads``; ``folder`` takes its architecture file."""
    sizes = golden.json("config")[case]
    weights = golden.weights(KEYS[case], weight_seed)
    rates = {
        f"{modality}_rates": (sizes[f"{modality[0]}_rate0"], sizes[f"{modality[0]}_rate1"])
        for modality in ("text", "video")
    }
    model = RetrievalModel(encoder_config(sizes, weights, MergingConfig(**rates), folder))
    model.load_state_dict(retrieval_from_published(weights, model.state_dict().keys()))
    return model


def published_video_qa_model(golden: Golden, weight_seed: int, folder: Path) -> VideoQAModel:
    """Returns the model of case ``qa``, without dropout; ``folder`` takes its architecture file."""
    sizes = golden.json("config")["qa"]
    weights = golden.weights("keys_vqa", weight_seed)
    model = VideoQAModel(
        VideoQAConfig(
            encoder=encoder_config(sizes, weights, published_video_qa_encoder().merging, folder),
            head=AnswerHeadConfig(dropout=0.0),
            num_answers=sizes["num_labels"],
        )
    )
    # The answer heads have more than a hundred million weights: they are taken over, not copied.
    model.load_state_dict(video_qa_from_published(weights, model.state_dict().keys()), assign=True)
    return model


def encoder_config(
    sizes: Mapping[str, Any], weights: Mapping[str, torch.Tensor], merging: MergingConfig, folder: Path
) -> RetrievalConfig:
    """Returns published settings with the sizes of a case; ``folder`` takes its architecture file."""
    architecture = folder / "architecture.json"
    architecture.write_text(json.dumps(clip_architecture(sizes, embed_dim=weights["clip.text_projection"].shape[1])))
    return RetrievalConfig(
        clip=ClipConfig(architecture=str(architecture), pretrained=None),
        temporal=TemporalConfig(layers=sizes["hidden"], init_from_clip_text=False),
        merging=merging,
        game=GameConfig(teacher="estimator"),
        loss=LossConfig(kl=sizes["kl"], skl=sizes["skl"]),
        quirks=Quirks.published(),
        max_words=sizes["T"],
        max_frames=sizes["V"],
    )


def clip_architecture(sizes: Mapping[str, Any], *, embed_dim: int) -> dict[str, Any]:
    """Returns the golden CLIP in open_clip's format; heads are an eighth of the text width, 64 channels each."""
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": sizes["image"],
            "patch_size": sizes["patch"],
            "layers": sizes["vision_layers"],
            "width": sizes["vision_width"],
        },
        "text_cfg": {
            "context_length": sizes["context"],
            "vocab_size": sizes["vocab"],
            "width": embed_dim,
            "heads": embed_dim // 64,
            "layers": sizes["text_layers"],
        },
    }


def batches(arrays: Mapping[str, np.ndarray]) -> tuple[TextBatch, VideoBatch]:
    """Returns the texts and videos of case a or f."""
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("text_ids", "text_mask", "video", "video_mask")}
    return (
        TextBatch(tensors["text_ids"], tensors["text_mask"].bool()),
        VideoBatch(tensors["video"], tensors["video_mask"].bool()),
    )


def assert_features_equal(actual: torch.Tensor, expected: np.ndarray, message: str) -> None:
    """Compares activations within the tolerance of two runs of the published code."""
    torch.testing.assert_close(actual, torch.from_numpy(expected), **FEATURES, msg=lambda text: f"{message}: {text}")


def check_level_losses(loss: TrainingLoss, arrays: Mapping[str, np.ndarray], prefix: str = "") -> set[str]:
    """Compares the contrastive and interaction losses of every level; returns the names of the parts."""
    expected = {
        f"{level}_{ours}": float(arrays[f"{prefix}{level}_{theirs}"])
        for level in LEVELS
        for ours, theirs in PAIR_LOSSES.items()
    }
    assert {name: loss.parts[name].item() for name in expected} == pytest.approx(expected, **LOSSES)
    return set(expected)


def check_gradients(model: nn.Module, arrays: Mapping[str, np.ndarray], prefixes: Mapping[str, str]) -> None:
    """Compares norms, the stored full gradients, and which parameters have none."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = dict(zip(arrays["grad_names"].tolist(), arrays["grad_norms"].tolist(), strict=True))
    with_gradient = {our_name(name, prefixes) for name in norms}
    assert {name for name, gradient in gradients.items() if gradient is not None} == with_gradient
    without = {our_name(name, prefixes) for name in arrays["nograd_names"].tolist() if ".bn." not in name}
    assert {name for name, gradient in gradients.items() if gradient is None} == without
    actual = {name: gradients[our_name(name, prefixes)].norm(dtype=torch.float64).item() for name in norms}
    assert actual == pytest.approx(norms, **GRADIENTS)
    for key in arrays:
        if key.startswith("grad::"):
            gradient = gradients[our_name(key.removeprefix("grad::"), prefixes)]
            # Single entries, many nearly 0, carry the rounding of the largest one.
            tolerance = 1e-4 * float(np.abs(arrays[key]).max())
            torch.testing.assert_close(gradient, torch.from_numpy(arrays[key]), rtol=1e-3, atol=tolerance)
