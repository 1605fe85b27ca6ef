"""Settings of the stage ``index``."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.configs import only_for
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class IndexingConfig:
    """Features of the videos of an index (``jobs.index``)."""

    batch_size: int = only_for(default=32)
    """Videos encoded at once."""

    videos_per_shard: int = only_for(default=64)
    """Videos per Parquet file: the unit of work and of commit."""

    def __post_init__(self) -> None:
        require_counts(self, "indexing", "batch_size", "videos_per_shard")
