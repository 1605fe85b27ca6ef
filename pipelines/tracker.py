"""How a stage reports its results while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pipelines.workspace.storage import Storage


class StageTracker:
    """Receives what a stage reports; this one keeps nothing of it."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Figures that the history does not hold: of each curve the point at ``step``."""

    def log_batch(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """New points, (step, metrics), of the curves whose history is kept in the stage's folder."""
        for step, metrics in points:
            self.log_metrics(metrics, step)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Names and texts that describe what the stage did."""

    def log_files(self, folder: Storage, names: Sequence[str]) -> None:
        """Files in ``folder``, which is in the workspace and stays there."""

    def log_model(self, folder: Storage) -> None:
        """The trained model in ``folder``."""

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """The stage ended."""
