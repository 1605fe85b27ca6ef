"""Checkpoint folders: weights as safetensors with a JSON config, and all that resuming needs.

    model.safetensors   weights
    model.json          kind of the model and its configuration
    training.pt         optimizer and schedule (tensors and plain values only)
    position.json       epoch, step in the epoch, step
    curve.jsonl         every point of every curve up to there

Nothing is unpickled: ``training.pt`` is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.models.folder import WEIGHTS
from pipelines.models.weights import read_description, writing
from pipelines.train.files import SCORE
from pipelines.train.history import Point, from_record, to_record
from pipelines.workspace.errors import DamagedFileError

UNSCORED = -1e9
"""Score of a checkpoint within an epoch: it serves to resume, and is never the best."""

TRAINING = "training.pt"
POSITION = "position.json"
CURVE = "curve.jsonl"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training is; its next step is ``step_in_epoch`` of ``epoch``."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r:.40}; a number of 0 or more is needed")


def save_training(
    folder: Path,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Mapping[str, Any],
    position: Position,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Writes what resuming needs besides the weights.

    Raises:
        StorageError: it could not be written.
    """
    with writing(folder):
        state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "schedule": dict(schedule)}
        if scaler is not None and scaler.is_enabled():
            state["scaler"] = scaler.state_dict()
        torch.save(state, folder / TRAINING)
        (folder / POSITION).write_text(json.dumps(asdict(position)) + "\n")


def load_training(
    folder: Path, *, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> tuple[Mapping[str, Any], Position]:
    """Fills ``optimizer``, and ``scaler`` where it scales, and returns the schedule's state and the position.

    Raises:
        DamagedFileError: they cannot be read, or are another optimizer's.
    """
    try:
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        return state["schedule"], Position(**json.loads((folder / POSITION).read_bytes()))
    # A damaged pickle is a program with wrong instructions: there is no telling what they raise.
    except Exception as error:
        raise DamagedFileError(f"the checkpoint in {folder} cannot be resumed from, it is damaged: {error}") from error


def inspect(folder: Path) -> tuple[Position, float]:
    """The position of a checkpoint, and the score that it was kept with; reads all of it.

    Raises:
        DamagedFileError: a part of it cannot be read.
    """
    try:
        load_file(folder / WEIGHTS)
        read_description(folder)
        torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        position = Position(**json.loads((folder / POSITION).read_bytes()))
    # A damaged pickle is a program with wrong instructions: there is no telling what they raise.
    except Exception as error:
        raise DamagedFileError(f"the checkpoint in {folder} is damaged: {error}") from error
    scores = [metrics[SCORE] for step, metrics in load_curve(folder) if step == position.step and SCORE in metrics]
    return position, float(scores[-1]) if scores and position.step_in_epoch == 0 else UNSCORED


def save_curve(folder: Path, curve: Sequence[Point]) -> None:
    """Writes the points that were reported so far.

    Raises:
        StorageError: they could not be written.
    """
    with writing(folder):
        (folder / CURVE).write_text("".join(f"{json.dumps(to_record(point))}\n" for point in curve))


def load_curve(folder: Path) -> list[Point]:
    """The points of the curves up to the checkpoint.

    Raises:
        DamagedFileError: they cannot be read.
    """
    try:
        return [from_record(json.loads(line)) for line in (folder / CURVE).read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"the checkpoint in {folder} cannot be resumed from, it is damaged: {error}") from error
