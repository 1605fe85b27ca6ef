"""Settings of the probes of what a retrieval model understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import content_of, only_for, require
from pipelines.recipe.checks import require_counts
from pipelines.recipe.data import Split

ProbePart = Literal["negatives", "perturbations", "moments"]

STRENGTH_NAMES = ("slight", "clear", "hard")
"""Of perturbations at strengths 1, 2 and 3."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Probes of a retrieval model (``jobs.probe``)."""

    split: Split = "test"
    """Which split of the manifest."""

    parts: tuple[ProbePart, ...] = ()
    """``negatives``: captions against ones with a word changed. ``perturbations``: R@1 with perturbed videos.
    ``moments``: spans of a search against the spans that the texts describe. An empty list selects all that the
    data allow."""

    negatives: str | None = content_of("file or name")
    """CSV or JSONL with columns ``caption``, ``negative`` and ``class``; generated data need none."""

    moments: str | None = content_of("file or name")
    """Annotations of moments of the videos; generated data need none."""

    moments_format: Literal["qvhighlights", "charades_sta"] = "qvhighlights"
    """Format of ``moments``: QVHighlights' JSONL or Charades-STA's text file, as published."""

    batch_size: int = only_for(default=64)
    """Texts, or videos, encoded at once."""

    bootstrap_samples: int = 1000
    """Resamples of the videos for the 95% intervals."""

    def __post_init__(self) -> None:
        require_counts(self, "probe", "batch_size", "bootstrap_samples")
        require(len(set(self.parts)) == len(self.parts), f"probe.parts names one twice: {', '.join(self.parts)}")

    def parts_of(self, *, generated: bool) -> tuple[ProbePart, ...]:
        """The selected parts, for generated or for other data.

        Raises:
            ValueError: a part is asked for that the data do not allow.
        """
        allowed: dict[ProbePart, bool] = {
            "negatives": generated or self.negatives is not None,
            "perturbations": True,
            "moments": generated or self.moments is not None,
        }
        for part in self.parts:
            require(
                allowed[part],
                f"probe.parts names {part}, which needs annotations with data that are not generated; "
                f"name a file in probe.{part}",
            )
        return self.parts or tuple(part for part, is_allowed in allowed.items() if is_allowed)
