"""Settings of the stage ``labels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import content_of, only_for
from pipelines.recipe.checks import require_counts
from pipelines.recipe.training import Precision


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Banzhaf-interaction labels of (caption, video) pairs, the estimator's training data.

    Where the data has no captions, the questions of training and validation take their place.
    """

    kind: Literal["exact", "published"] = "exact"
    """``exact``: the Banzhaf interaction in closed form. ``published``: the exact expectation
    of what the published code samples, so that its estimator checkpoints keep their meaning."""

    checkpoint: str | None = content_of("checkpoint")
    """Folder or published file of a trained retrieval model whose features the labels are computed from; null = the
    model as initialised (published)."""

    captions_per_video: int | None = None
    """Captions of a training video that are labelled; null = all (published)."""

    precision: Precision = "float32"
    """Of the encoders' arithmetic; interactions are computed in float32."""

    batch_size: int = only_for(default=64)
    """Pairs encoded at once."""

    videos_per_shard: int = only_for(default=256)
    """Videos per Parquet file: the unit of work and of commit."""

    def __post_init__(self) -> None:
        require_counts(self, "labels", "captions_per_video", "batch_size", "videos_per_shard")
