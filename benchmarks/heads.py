"""The retrieval model above CLIP: published sizes behind towers as small as can be, and random features for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hbi_models.axes import TokenFeatures
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import Quirks, RetrievalConfig, TemporalConfig
from hbi_models.retrieval import RetrievalModel

DIM = 512


@dataclass(frozen=True)
class Shape:
    """Items on each side, and the tokens of each."""

    texts: int
    videos: int
    words: int
    frames: int

    def __str__(self) -> str:
        items = f"{self.texts:,} × {self.videos:,}" if self.texts != self.videos else f"{self.texts:,}"
        return f"{items}, {self.words}×{self.frames}"


def make_model(folder: Path, shape: Shape, *, dim: int = DIM) -> RetrievalModel:
    """A model whose heads are those of ViT-B/32 and whose towers are never called."""
    towers = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 16, "patch_size": 16, "layers": 1, "width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1},
    }
    path = folder / "towers.json"
    path.write_text(json.dumps(towers))
    config = RetrievalConfig(
        clip=ClipConfig(architecture=str(path), pretrained=None),
        # Features go in above the temporal encoder, so it needs no layers.
        temporal=TemporalConfig(layers=0, init_from_clip_text=False),
        quirks=Quirks.published(),
        max_words=shape.words,
        max_frames=shape.frames,
    )
    torch.manual_seed(0)
    return RetrievalModel(config)


def random_features(
    items: int, tokens: int, *, dim: int = DIM, shortest: int | None = None, seed: int
) -> TokenFeatures:
    """Normal features; items hold between ``shortest`` and all ``tokens``, by default all."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(items, tokens, dim, generator=generator)
    lengths = torch.randint(tokens if shortest is None else shortest, tokens + 1, (items, 1), generator=generator)
    return TokenFeatures(features, torch.arange(tokens) < lengths)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two elements, relative to the largest of theirs."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny))
