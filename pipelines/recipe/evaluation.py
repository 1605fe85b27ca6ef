"""Settings of the evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import added_later, only_for, require
from pipelines.recipe.checks import require_counts
from pipelines.recipe.data import Split

PostProcessing = Literal["dual_softmax", "qb_norm", "nnn"]


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
    """Resamples of the videos, with all their queries, for the 95% intervals."""

    post_processing: tuple[PostProcessing, ...] = added_later(default=())
    """Corrections whose figures are shown beside the raw ones: ``dual_softmax`` (needs all test queries at once:
    transductive), ``qb_norm`` and ``nnn`` (need a bank of training captions). Parameters are chosen on the split
    val."""

    bank_captions: int = added_later(default=1000)
    """Training captions in the bank, drawn by a hash of video and number."""

    zero_shot: bool = only_for(default=False)
    """Also evaluate ``model.clip`` as it was pretrained, without any training: the stage ``zero_shot``."""

    def __post_init__(self) -> None:
        require_counts(self, "evaluation", "batch_size", "tile", "bootstrap_samples", "bank_captions")
        require(
            len(set(self.post_processing)) == len(self.post_processing),
            f"evaluation.post_processing names one twice: {', '.join(self.post_processing)}",
        )

    @property
    def bank_methods(self) -> tuple[PostProcessing, ...]:
        """Those of ``post_processing`` that need a bank of training captions."""
        return tuple(method for method in self.post_processing if method != "dual_softmax")


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
    """Resamples of the videos, with all their questions, for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "qa_evaluation", "batch_size", "bootstrap_samples")
