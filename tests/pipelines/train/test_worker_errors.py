"""What a worker of Ray Train cannot use is said by the driver as the worker said it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import WorkerGroupError

from pipelines.recipe.resources import TrainResources
from pipelines.resources.device import CPU
from pipelines.tracker import StageTracker
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import rank
from pipelines.train.estimator import EstimatorTask
from pipelines.train.loop import LoopSettings
from pipelines.train.trainer import train_task
from pipelines.workspace.storage import Storage
from tests.tiny_estimator import estimator_task, write_labels

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault]


@dataclass(kw_only=True)
class UnreadableBatch(EstimatorTask):
    """The second worker cannot read its first batch, or there is a mistake in the program."""

    error: Exception

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[Any, None, None]:
        if rank() == 1:
            raise self.error
        yield from super().batches(position, device)


def error_of(folder: Path, error: Exception) -> BaseException:
    task = UnreadableBatch(
        **{name: value for name, value in vars(estimator_task(folder)).items() if name != "kind"}, error=error
    )
    with pytest.raises(Exception) as found:
        train_task(
            task,
            Storage(str(folder / "output")),
            StageTracker(),
            resources=TrainResources(workers=2, gpus_per_worker=0.0, max_failures=0),
            settings=LoopSettings(log_every_steps=1),
        )
    return found.value


def test_a_file_that_a_worker_cannot_use_is_said_in_the_workers_words(tmp_path: Path, ray_local: object) -> None:
    write_labels(tmp_path)
    error = error_of(tmp_path, ValueError("an image cannot be used; mend it"))
    assert isinstance(error, ValueError)
    assert str(error).removeprefix("rank 1: ValueError: ") == "an image cannot be used; mend it"


def test_a_mistake_of_the_program_keeps_its_traceback(tmp_path: Path, ray_local: object) -> None:
    write_labels(tmp_path)
    error = error_of(tmp_path, TypeError("a mistake"))
    assert isinstance(error, WorkerGroupError)
    assert "in batches" in str(error)
    assert "TypeError: a mistake" in str(error)
