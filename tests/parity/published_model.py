"""The retrieval model of the golden cases: published settings, sizes from the golden folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.configs import (
    ClipConfig,
    GameConfig,
    LossConfig,
    MergingConfig,
    Quirks,
    RetrievalConfig,
    TemporalConfig,
)
from hbi_models.published_weights import retrieval_from_published
from hbi_models.retrieval import RetrievalModel
from tests.parity.conftest import Golden

KEYS = {"ret": "keys_retrieval", "heads": "keys_retrieval_heads"}

# What a second run of the published code with other kernels suggests (README of the data).
FEATURES = {"rtol": 1e-4, "atol": 2e-5}
LOSSES = {"rel": 1e-4, "abs": 1e-6}
GRADIENTS = {"rel": 1e-3, "abs": 1e-7}


def published_model(golden: Golden, case: str, weight_seed: int, folder: Path) -> RetrievalModel:
    """Returns the model of case ``ret`` or ``heads``; ``folder`` takes its architecture file."""
    sizes = golden.json("config")[case]
    weights = golden.weights(KEYS[case], weight_seed)
    architecture = folder / f"{case}.json"
    architecture.write_text(json.dumps(clip_architecture(sizes, embed_dim=weights["clip.text_projection"].shape[1])))
    model = RetrievalModel(
        RetrievalConfig(
            clip=ClipConfig(architecture=str(architecture), pretrained=None),
            temporal=TemporalConfig(layers=sizes["hidden"], init_from_clip_text=False),
            merging=MergingConfig(
                text_rates=(sizes["t_rate0"], sizes["t_rate1"]), video_rates=(sizes["v_rate0"], sizes["v_rate1"])
            ),
            game=GameConfig(teacher="estimator"),
            loss=LossConfig(kl=sizes["kl"], skl=sizes["skl"]),
            quirks=Quirks.published(),
            max_words=sizes["T"],
            max_frames=sizes["V"],
        )
    )
    model.load_state_dict(retrieval_from_published(weights, model.state_dict().keys()))
    return model


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
    """Returns the texts and videos of case a."""
    tensors = {name: torch.from_numpy(arrays[name]) for name in ("text_ids", "text_mask", "video", "video_mask")}
    return (
        TextBatch(tensors["text_ids"], tensors["text_mask"].bool()),
        VideoBatch(tensors["video"], tensors["video_mask"].bool()),
    )


def assert_features_equal(actual: torch.Tensor, expected: np.ndarray, message: str) -> None:
    """Compares activations within the tolerance of two runs of the published code."""
    torch.testing.assert_close(actual, torch.from_numpy(expected), **FEATURES, msg=lambda text: f"{message}: {text}")
