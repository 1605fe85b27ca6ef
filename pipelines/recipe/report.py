"""Settings of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from hbi_models.config_fields import only_for, require
from hbi_models.metric_names import DIRECTIONS, RANK_METRICS
from pipelines.recipe.checks import require_counts

PUBLISHED_METRICS = (
    *(f"{direction}/{name}" for direction in DIRECTIONS for name in RANK_METRICS),
    "all/accuracy",
    "answerable/accuracy",
)
"""Metrics of the evaluations that the report compares with figures of others."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The page at the end of a run."""

    enabled: bool = only_for(default=True)
    """Write it."""

    queries: int = 8
    """How many of the best and of the worst queries are shown."""

    figures: int = 2
    """How many of each are drawn with their interactions."""

    mistakes: int = 12
    """How many wrongly answered questions of each type are shown."""

    published: dict[str, float] = field(default_factory=dict)
    """Figures to compare with, by metric: ``text_to_video/recall_at_1``, ``all/accuracy``."""

    def __post_init__(self) -> None:
        require_counts(self, "report", "queries", "figures", "mistakes", least=0)
        unknown = sorted(set(self.published) - set(PUBLISHED_METRICS))
        require(
            not unknown,
            f"report.published names {', '.join(unknown)}; the metrics are: {', '.join(PUBLISHED_METRICS)}",
        )
