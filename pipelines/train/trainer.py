"""Trains a task in this process or on Ray Train workers, and keeps the model of its best checkpoint.

A trial of a tuning already has a process with the resources of one worker. If it needs only one worker, or if the
recipe asks for none, the training loop runs in the calling process and no worker group is started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipelines.models.folder import DESCRIPTION, ENCODER_FILES, LEFT_OUT, MODEL, WEIGHTS
from pipelines.models.weights import fixed_weights, load_weights, save_model
from pipelines.progress import Progress
from pipelines.recipe.resources import TrainResources
from pipelines.resources.device import compute_device, with_gpus
from pipelines.tracker import StageTracker
from pipelines.train.checkpoint_folder import CheckpointFolder
from pipelines.train.collapse import CollapseWarnings
from pipelines.train.files import CHECKPOINTS, NON_FINITE
from pipelines.train.history import History, Point
from pipelines.train.in_place import train_in_place
from pipelines.train.loop import SCORE, LoopSettings, NonFiniteLossError, Task
from pipelines.train.trial_host import CheckpointPlace, TrialHost
from pipelines.workspace.storage import Storage


def train_task(
    task: Task[Any],
    output: Storage,
    tracker: StageTracker,
    *,
    resources: TrainResources,
    settings: LoopSettings,
    trial: TrialHost | None = None,
) -> dict[str, float]:
    """Trains ``task`` and commits the best checkpoint's weights to ``<output>/model``.

    Returns:
        The number of steps and the last value of every validation metric, with the best score.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        ray.train.TrainingFailedError: workers died more often than ``resources.max_failures``.
    """
    total = sum(map(task.steps, range(task.epochs)))
    history, collapse = History(output), CollapseWarnings()
    if trial is not None:
        settings = replace(settings, validations_per_epoch=trial.validations_per_epoch)
    with Progress(task.kind, total=total, unit="steps") as progress:

        def receive(points: list[Point]) -> None:
            history.extend(points)
            tracker.log_batch(points)
            collapse.look(points)
            for step, metrics in points:
                progress.advance_to(step, _note(metrics))

        try:
            if resources.workers == 0 or (trial is not None and resources.workers == 1):
                place = (trial and trial.checkpoints) or CheckpointFolder(output.folder(CHECKPOINTS))
                # The process of the command itself may see GPUs that it is not to use.
                with with_gpus(resources.gpus_per_worker):
                    curve, score = _train_here(task, output, place, settings, receive)
            else:
                from pipelines.train.ray_trainer import train_on_workers  # loads Ray

                curve, score, checkpoint = train_on_workers(task, output, settings, resources, receive)
                with TemporaryDirectory() as scratch:
                    _keep_model(task, checkpoint.download("", Path(scratch)), output)
        except NonFiniteLossError as error:
            report = {**error.report, "saved": output.place(NON_FINITE)}
            output.write_json(NON_FINITE, report)
            raise NonFiniteLossError(report) from error
    # If a driver or a sink was killed, points are missing in the history. The checkpoints have all of them.
    history.complete(curve)
    return {"steps": total, **history.latest("validation/"), "best/score": score}


def _train_here(
    task: Task[Any],
    output: Storage,
    place: CheckpointPlace,
    settings: LoopSettings,
    receive: Callable[[list[Point]], None],
) -> tuple[list[Point], float]:
    """Trains in this process; returns the whole curve, and the score of the checkpoint that it commits."""
    try:
        curve = train_in_place(task, device=compute_device(), settings=settings, place=place, receive=receive)
    except NonFiniteLossError as error:
        # It came before the first checkpoint.
        if not output.exists(CHECKPOINTS):
            raise
        raise NonFiniteLossError({**error.report, "last_checkpoint": output.place(CHECKPOINTS)}) from error
    with TemporaryDirectory() as scratch:
        folder, score = place.best(Path(scratch))
        _keep_model(task, folder, output)
    return curve, score


def _keep_model(task: Task[Any], folder: Path, output: Storage) -> None:
    """Puts the chosen checkpoint's weights and description in their place, and what its encoder needs beside them.

    The weights get what checkpoints leave out.
    """
    with TemporaryDirectory() as scratch:
        complete = _completed(task, folder, Path(scratch))
        for name in (WEIGHTS, DESCRIPTION, *(name for name in ENCODER_FILES if (complete / name).is_file())):
            output.write_bytes(f"{MODEL}/{name}", (complete / name).read_bytes())


def _completed(task: Task[Any], folder: Path, scratch: Path) -> Path:
    """The checkpoint in ``folder`` with all weights: itself, or a copy with the frozen encoder in ``scratch``."""
    if not json.loads((folder / DESCRIPTION).read_bytes()).get(LEFT_OUT):
        return folder
    # As the training began: the same seed draws the same weights.
    torch.manual_seed(task.seed)
    model = task.make_model()
    load_weights(folder, model, left_out=fixed_weights(model))
    save_model(scratch, model, kind=task.kind, config=task.model_config)
    return scratch


def _note(metrics: Mapping[str, float]) -> str:
    shown = {
        "train/loss": "loss {:.3f}",
        "throughput/pairs_per_s": "{:.0f} pairs/s",
        SCORE: "validation score {:.2f}",
    }
    return ", ".join(form.format(metrics[name]) for name, form in shown.items() if name in metrics)
