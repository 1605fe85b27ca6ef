"""Settings of the tracking with MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    experiment: str = "hbi"
    """Name of the MLflow experiment."""

    log_model: bool = True
    """Log the trained model so that ``mlflow.pytorch.load_model`` reads it."""

    every_steps: int = 5
    """Steps between two points of a training curve."""

    def __post_init__(self) -> None:
        require_counts(self, "tracking", "every_steps")
