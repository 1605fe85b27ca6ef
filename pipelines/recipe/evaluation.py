"""Settings of the evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.configs import only_for
from pipelines.recipe.checks import require_counts
from pipelines.recipe.data import Split


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Retrieval evaluation."""

    split: Split = "test"
    """Which split of the manifest."""

    level_rates: tuple[float, float, float] | None = None
    """Weights of the entity, action and event similarities; null = those of the checkpoint."""

    batch_size: int = only_for(default=64)
    """Texts, or videos, encoded at once."""

    tile: int = only_for(default=256)
    """Texts and videos per side of a similarity tile: bounds the memory."""

    bootstrap_samples: int = 1000
    """Resamples of the queries for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "evaluation", "batch_size", "tile", "bootstrap_samples")


@dataclass(frozen=True, kw_only=True)
class QAEvaluationConfig:
    """Evaluation of question answering."""

    split: Split = "test"
    """Which questions, by their own split."""

    level_rates: tuple[float, float, float] | None = None
    """Weights of the entity, action and event logits; null = those of the checkpoint."""

    batch_size: int = only_for(default=64)
    """Videos encoded, or questions answered, at once."""

    bootstrap_samples: int = 1000
    """Resamples of the questions for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "qa_evaluation", "batch_size", "bootstrap_samples")
