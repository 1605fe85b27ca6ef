"""Frozen settings of search and ranking by a pretrained encoder alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import require
from hbi_models.configs import GameConfig, Quirks

ZeroShotPooling = Literal["mean", "softmax"]

ZERO_SHOT_POOLINGS: tuple[ZeroShotPooling, ...] = ("mean", "softmax")


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Retrieval by a pretrained encoder alone."""

    clip: ClipConfig = field(default_factory=ClipConfig)

    max_frames: int = 12
    """Frames of a video."""

    pooling: ZeroShotPooling = "mean"
    """How frames become the score of their video: by the ``mean`` of their embeddings (published zero-shot protocol),
    or by their cosines with the text, weighted by a ``softmax`` over the frames."""

    temperature: float = 0.1
    """Of that softmax (Bain et al., 2022, arXiv 2205.08508: 0.1)."""

    def __post_init__(self) -> None:
        require(self.max_frames >= 1, f"max_frames is {self.max_frames}; it must be 1 or more")
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be positive")

    @property
    def level_rates(self) -> tuple[float, ...]:
        """There is one level."""
        return (1.0,)

    @property
    def game(self) -> GameConfig:
        """How tokens are weighed: a text has one token, and all frames are equally important."""
        return GameConfig()

    @property
    def quirks(self) -> Quirks:
        """No slips of the published model."""
        return Quirks()

    def with_clip(self, clip: ClipConfig) -> ZeroShotConfig:
        """Returns these settings with another encoder."""
        return replace(self, clip=clip)
