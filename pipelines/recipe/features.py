"""Settings of the stage ``features``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import only_for, require
from pipelines.recipe.checks import require_counts
from pipelines.recipe.training import Precision

FeatureType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Features of words and frames by a frozen encoder (``model.clip.train`` is none), or by another model
    (``data.features``). They are made once, and all later stages read them."""

    views: int = 0
    """Augmented copies of each training clip, in addition to the unchanged clip. A training with augmentation takes
    one of them, drawn by (seed, epoch, pass, video), instead of augmenting the clip anew."""

    dtype: FeatureType = "float16"
    """How a number is stored; rounding to float16 moves it by 0.05% at most."""

    precision: Precision = "float32"
    """Precision of the encoder's arithmetic."""

    batch_size: int = only_for(default=32)
    """Videos, or 8 times as many texts, encoded at once."""

    videos_per_shard: int = only_for(default=64)
    """Videos per Parquet file: the unit of work, of commit and of loss."""

    max_memory_gb: float = only_for(default=16.0)
    """In GB (10⁹ bytes). If the features of a split take no more than this, each process that trains or evaluates
    reads them into memory; otherwise they are read from their shards, batch by batch."""

    def __post_init__(self) -> None:
        require_counts(self, "features", "batch_size", "videos_per_shard")
        require_counts(self, "features", "views", least=0)
        require(self.max_memory_gb >= 0, f"features.max_memory_gb is {self.max_memory_gb}; it must not be negative")
