"""What a training is given if it is a trial of a tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class TrialHost:
    """Settings of a training that is a trial of a tuning, in a process with the resources of one worker."""

    validations_per_epoch: int = 1
    """Only the scheduler uses those within an epoch: they choose no checkpoint and change no weight."""
    checkpoints: CheckpointPlace | None = None
    """Where checkpoints are kept; None = in the stage's own folder."""


class CheckpointPlace(Protocol):
    """Keeps the best and the latest checkpoint of a training."""

    def latest(self, scratch: Path) -> Path | None:
        """The folder of the latest checkpoint, if there is one; a download goes to ``scratch``."""
        ...

    def best(self, scratch: Path) -> tuple[Path, float]:
        """The folder and the score of the best checkpoint, of equal ones the last."""
        ...

    def keep(self, folder: Path, score: float) -> None:
        """Takes over the checkpoint in ``folder``, which the caller removes afterwards."""
        ...
