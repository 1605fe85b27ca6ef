"""A retrieval training that is interrupted around the end of an epoch ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pipelines.train.loop import LoopSettings, TrainingLoop
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

CAPTIONS = (3, 1, 2, 2, 3, 1, 2, 1, 2)
SETTINGS = LoopSettings(checkpoint_every_steps=1, log_every_steps=1)


class InterruptError(Exception):
    """Stands for a machine that goes away."""


@dataclass
class Recorder:
    """Keeps the losses, and the last checkpoint under ``folder``."""

    folder: Path
    interrupt_after: int | None = None
    losses: dict[int, float] = field(default_factory=dict)
    checkpoints: int = 0

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]

    def checkpoint(self, folder: Path | None, score: float) -> None:
        assert folder is not None
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
        self.checkpoints += 1
        if self.checkpoints == self.interrupt_after:
            raise InterruptError


@pytest.mark.parametrize("steps_from_the_end_of_an_epoch", [-1, 0, 1])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, steps_from_the_end_of_an_epoch: int
) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1)})
    task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS)
    assert min(task.steps_per_epoch) >= 3
    interrupt_after = task.steps(0) + steps_from_the_end_of_an_epoch
    epoch, step_in_epoch = divmod(interrupt_after, task.steps(0))

    def loop(recorder: Recorder, resume: Path | None = None) -> TrainingLoop:  # type: ignore[type-arg]
        return TrainingLoop(task, device=torch.device("cpu"), reporter=recorder, settings=SETTINGS, resume=resume)

    whole = Recorder(tmp_path / "whole")
    expected = loop(whole).run().state_dict()

    first, second = Recorder(tmp_path / "first", interrupt_after=interrupt_after), Recorder(tmp_path / "second")
    with pytest.raises(InterruptError):
        loop(first).run()
    resumed = loop(second, resume=first.folder)
    assert (resumed.position.epoch, resumed.position.step_in_epoch) == (epoch, step_in_epoch)
    found = resumed.run().state_dict()

    # The same losses to the last bit, from the next batch on: data, augmentation, optimizer and
    # schedule went on where they were.
    assert second.losses.keys() == whole.losses.keys() - first.losses.keys()
    assert first.losses | second.losses == whole.losses
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
