"""What a stage has to say, and who listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.workspace.storage import Storage


class StageTracker:
    """Receives what a stage has to say; this one only writes to the log."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """One point of each named curve."""

    def log_batch(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Many points at once: (step, metrics)."""
        for step, metrics in points:
            self.log_metrics(metrics, step)

    def log_curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """All points of a training so far; those that were logged before are passed over."""

    def log_document(self, name: str, document: Any) -> None:
        """A JSON document under the file name ``name``."""

    def log_files(self, folder: Storage, names: Sequence[str]) -> None:
        """Files in ``folder``, which is in the workspace and stays there."""

    def log_model(self, folder: Storage) -> None:
        """The trained model in ``folder``."""

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """The stage ended."""
