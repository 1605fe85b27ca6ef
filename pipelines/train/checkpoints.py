"""Checkpoint folders: weights as safetensors with a JSON config, and all that resuming needs.

    model.safetensors   weights
    model.json          kind of the model and its configuration
    training.pt         optimizer, schedule and, where model.safetensors holds others (averaged, or with low-rank
                        updates added), the weights that are trained (tensors and plain values only)
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
from torch import Tensor

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
    weights: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what resuming needs besides the weights of the model.

    ``weights`` are those in training, if the model is saved with others; ``average`` is their running mean.

    Raises:
        StorageError: it could not be written.
    """
    with writing(folder):
        state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "schedule": dict(schedule)}
        if scaler is not None and scaler.is_enabled():
            state["scaler"] = scaler.state_dict()
        for name, tensors in (("weights", weights), ("average", average)):
            if tensors is not None:
                state[name] = dict(tensors)
        torch.save(state, folder / TRAINING)
        (folder / POSITION).write_text(json.dumps(asdict(position)) + "\n")


@dataclass(frozen=True, slots=True)
class Saved:
    """What resuming needs besides the weights of the model and the optimizer's state."""

    schedule: Mapping[str, Any]
    position: Position
    weights: Mapping[str, Tensor] | None
    """Those in training, if the model was saved with others."""
    average: Mapping[str, Tensor] | None
    """The running mean of the weights in training, if there is one."""


def load_training(
    folder: Path, *, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> Saved:
    """Fills ``optimizer``, and ``scaler`` where it scales, and returns the rest.

    Raises:
        DamagedFileError: they cannot be read, or are another optimizer's.
    """
    try:
        # To the CPU: the optimizer puts each tensor where its parameter is, which may be another device than before.
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        position = Position(**json.loads((folder / POSITION).read_bytes()))
        weights, average = (_tensors(state.get(name)) for name in ("weights", "average"))
        return Saved(state["schedule"], position, weights, average)
    # A damaged pickle is a program with wrong instructions: there is no telling what they raise.
    except Exception as error:
        raise DamagedFileError(f"the checkpoint in {folder} cannot be resumed from, it is damaged: {error}") from error


def _tensors(found: Any) -> Mapping[str, Tensor] | None:
    if found is None or (isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())):
        return found
    raise TypeError(f"{found!r:.40} where tensors are needed")


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
    # A checkpoint within an epoch was validated, too, where a tuning asks for it, but its score chooses none.
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
