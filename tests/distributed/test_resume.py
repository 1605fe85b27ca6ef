"""A retrieval training that is interrupted around the end of an epoch ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.clip.adaptation import merged_state_dict
from hbi_models.clip.configs import LoraConfig
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.models.weights import load_model
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.train.retrieval import RetrievalTask
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

CAPTIONS = (3, 1, 2, 2, 3, 1, 2, 1, 2)
LONG = pytest.mark.long
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


@LONG
@pytest.mark.parametrize("steps_from_the_end_of_an_epoch", [-1, 0, 1])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, steps_from_the_end_of_an_epoch: int
) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1)})
    task = retrieval_task(data, retrieval_config(tmp_path), CAPTIONS)
    check(task, tmp_path, steps_from_the_end_of_an_epoch)


@pytest.mark.parametrize("steps_from_the_end_of_an_epoch", [pytest.param(-2, marks=LONG), 1])
def test_updates_of_low_rank_and_the_average_go_on_to_the_bit(
    tmp_path: Path, steps_from_the_end_of_an_epoch: int
) -> None:
    data = write_split_data(tmp_path, {"train": CAPTIONS, "val": (1, 2, 1)})
    clip = replace(retrieval_config(tmp_path).clip, train="lora", lora=LoraConfig(rank=2), gradient_checkpointing=True)
    # The average starts between the two interruptions.
    optimizer = OptimizerConfig(lr=1e-2, clip_lr_factor=1.0, ema_decay=0.7, warmup_fraction=0.3)
    task = retrieval_task(data, retrieval_config(tmp_path, clip=clip), CAPTIONS, optimizer=optimizer)
    whole = check(task, tmp_path, steps_from_the_end_of_an_epoch)
    assert whole.average is not None and whole.average.started
    trained = {name: value for name, value in whole.core.named_parameters() if value.requires_grad}
    assert any("parametrizations" in name for name in trained)
    # The kept checkpoint holds the average with its updates added, under the names of a model without them.
    kept = load_model(Storage(str(tmp_path / "whole")), tmp_path / "scratch")
    with whole.average.applied():
        merged = merged_state_dict(whole.core)
    assert kept.state_dict().keys() == merged.keys()
    for name, value in kept.state_dict().items():
        assert torch.equal(value, merged[name]), name
    moved = {name for name, value in merged.items() if not torch.equal(value, whole.core.state_dict().get(name, value))}
    assert "temporal.positions.weight" in moved


def check(task: RetrievalTask, tmp_path: Path, steps_from_the_end_of_an_epoch: int) -> TrainingLoop[Any]:
    """Interrupts the training, goes on with it, and compares both with one that was not; returns that one."""
    assert min(task.steps_per_epoch) >= 3
    interrupt_after = task.steps(0) + steps_from_the_end_of_an_epoch
    epoch, step_in_epoch = divmod(interrupt_after, task.steps(0))

    def loop(recorder: Recorder, resume: Path | None = None) -> TrainingLoop[Any]:
        return TrainingLoop(task, device=torch.device("cpu"), reporter=recorder, settings=SETTINGS, resume=resume)

    whole = Recorder(tmp_path / "whole")
    uninterrupted = loop(whole)
    expected = uninterrupted.run().state_dict()

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
    if uninterrupted.average is not None:
        assert resumed.average is not None
        for name, value in uninterrupted.average.state().items():
            assert torch.equal(resumed.average.state()[name], value), name
    return uninterrupted
