"""Settings of the stage ``index``."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.config_fields import added_later, only_for, require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class IndexingConfig:
    """Features of the videos of an index (``jobs.index``)."""

    batch_size: int = only_for(default=32)
    """Videos encoded at once."""

    videos_per_shard: int = only_for(default=64)
    """Videos per Parquet file: the unit of work and of commit."""

    bank: str | None = added_later(default=None, names="file or name")
    """Text file with one training caption per line. With it, searches can correct for videos that are found too often
    (``jobs.search --correct``). An evaluation with ``qb_norm`` or ``nnn`` writes one, ``bank.txt``."""

    bank_beta: float = added_later(default=20.0)
    """Inverse temperature of QB-Norm (published: 20). Take the value that the evaluation chose."""

    bank_neighbours: int = added_later(default=256)
    """Captions of the bank that NNN averages over (the released code's default)."""

    bank_weight: float = added_later(default=0.5)
    """Weight of NNN's average (the released code's default)."""

    def __post_init__(self) -> None:
        require_counts(self, "indexing", "batch_size", "videos_per_shard", "bank_neighbours")
        require(self.bank_beta > 0, f"indexing.bank_beta is {self.bank_beta}; it must be positive")
