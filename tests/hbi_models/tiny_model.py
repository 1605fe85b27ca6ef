"""Models of retrieval and question answering small enough for any test, and random batches for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import (
    AnswerHeadConfig,
    GameConfig,
    MergingConfig,
    RetrievalConfig,
    TemporalConfig,
    VideoQAConfig,
)

IMAGE_PX = 16
MAX_WORDS = 12
MAX_FRAMES = 6
DIM = 32
NUM_ANSWERS = 7

TINY_CLIP: dict[str, Any] = {
    "embed_dim": DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": IMAGE_PX, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 50, "width": DIM, "heads": 2, "layers": 2},
}


def write_architecture(folder: Path, architecture: dict[str, Any] | None = None) -> str:
    """Returns the path of a JSON file with the architecture, by default the tiny one."""
    path = folder / "architecture.json"
    path.write_text(json.dumps(architecture or TINY_CLIP))
    return str(path)


def tiny_config(folder: Path, **settings: Any) -> RetrievalConfig:
    """Returns settings of the tiny model; keywords replace those of ``RetrievalConfig``."""
    defaults = {
        "clip": ClipConfig(architecture=write_architecture(folder), pretrained=None),
        "temporal": TemporalConfig(layers=1),
        "merging": MergingConfig(text_rates=(0.5, 0.5), video_rates=(0.5, 0.5), heads=4),
        "game": GameConfig(teacher="exact", estimator_channels=4),
        "max_words": MAX_WORDS,
        "max_frames": MAX_FRAMES,
    }
    return RetrievalConfig(**{**defaults, **settings})


def tiny_video_qa_config(folder: Path, *, encoder: dict[str, Any] | None = None, **settings: Any) -> VideoQAConfig:
    """Returns settings of the tiny question answering model, without dropout; keywords replace defaults."""
    defaults = {
        "encoder": tiny_config(folder, **(encoder or {})),
        "head": AnswerHeadConfig(projection=16, hidden=24, dropout=0.0),
        "num_answers": NUM_ANSWERS,
    }
    return VideoQAConfig(**{**defaults, **settings})


def length_mask(lengths: list[int], max_tokens: int) -> torch.Tensor:
    """Returns the mask of items whose first tokens are real."""
    return torch.arange(max_tokens) < torch.tensor(lengths)[:, None]


def random_batches(word_lengths: list[int], frame_lengths: list[int]) -> tuple[TextBatch, VideoBatch]:
    """Returns captions and videos with these numbers of words and frames, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    mask = length_mask(word_lengths, MAX_WORDS)
    token_ids = torch.randint(1, 50, mask.shape, generator=generator) * mask
    frame_mask = length_mask(frame_lengths, MAX_FRAMES)
    pixels = torch.randn(*frame_mask.shape, 3, IMAGE_PX, IMAGE_PX, generator=generator)
    return TextBatch(token_ids, mask), VideoBatch(pixels * frame_mask[:, :, None, None, None], frame_mask)
