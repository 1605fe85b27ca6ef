from __future__ import annotations

import math
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hbi_models.optimizer_config import OptimizerConfig
from pipelines.models.folder import DESCRIPTION
from pipelines.models.weights import WEIGHTS
from pipelines.train.checkpoints import Position, load_curve
from pipelines.train.loop import SCORE, UNSCORED, LoopSettings, NonFiniteLossError, TrainingLoop
from tests.absent_device import ABSENT, absent_device, values

CPU = torch.device("cpu")
STEPS = 5
EPOCHS = 3


@dataclass
class LineTask:
    """Fits a line with dropout; batch ``n`` of epoch ``e`` is a function of both."""

    seed: int = 0
    epochs: int = EPOCHS
    poisoned: tuple[int, int] | None = None
    factor: float = 1.0
    kind: str = "line"
    model_config: Any = field(default_factory=dict)
    optimizer_config: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.05))
    seen: list[tuple[int, int]] = field(default_factory=list)

    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1))

    def steps(self, epoch: int) -> int:
        return STEPS + epoch

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[tuple[int, int], None, None]:
        for epoch in range(position.epoch, self.epochs):
            for step in range(position.step_in_epoch if epoch == position.epoch else 0, self.steps(epoch)):
                yield epoch, step

    def loss(
        self, model: nn.Module, batch: tuple[int, int], device: torch.device, *, watch: bool = False
    ) -> Mapping[str, Tensor]:
        self.seen.append(batch)
        generator = torch.Generator().manual_seed(100 * batch[0] + batch[1])
        inputs = torch.randn(8, 3, generator=generator).to(device)
        error = model(inputs)[:, 0] - inputs.sum(dim=1)
        scale = torch.nan if batch == self.poisoned else 1.0
        figures = {"game/spread": error.std()} if watch else {}
        return {"loss": scale * self.factor * error.square().mean(), "bias": error.mean(), **figures}

    def after_step(self, model: nn.Module) -> None:
        with torch.no_grad():
            model[1].bias.clamp_(max=0.1)  # type: ignore[index, union-attr, operator]

    def row_names(self, batch: tuple[int, int]) -> list[str]:
        return [f"the videos of epoch {batch[0]}, step {batch[1]}"]

    def pairs(self, batch: tuple[int, int]) -> int:
        return 8

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        assert not model.training
        return {SCORE: -float(model[1].weight.detach().sub(1).square().sum())}  # type: ignore[index, union-attr, operator]


class InterruptError(Exception):
    """Stands for a machine that goes away."""


@dataclass
class Recorder:
    """Keeps what the loop reports, and copies of the checkpoints."""

    folder: Path
    interrupt_after: int | None = None
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, dict(metrics)))

    def checkpoint(self, folder: Path | None, score: float) -> None:
        assert folder is not None
        shutil.copytree(folder, self.folder / str(len(self.scores)))
        self.scores.append(score)
        if len(self.scores) == self.interrupt_after:
            raise InterruptError

    def curve(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.points if name in metrics}


def train(task: LineTask, recorder: Recorder, *, resume: Path | None = None, **settings: Any) -> dict[str, Tensor]:
    options = LoopSettings(**{"log_every_steps": 1, **settings})
    return TrainingLoop(task, device=CPU, reporter=recorder, settings=options, resume=resume).run().state_dict()


def test_an_epoch_ends_with_validation_and_a_checkpoint(tmp_path: Path) -> None:
    task, recorder = LineTask(), Recorder(tmp_path)
    train(task, recorder)
    assert task.seen == list(task.batches(Position()))
    assert list(recorder.curve(SCORE)) == [5, 11, 18]
    assert recorder.scores == list(recorder.curve(SCORE).values())
    assert list(recorder.curve("train/loss")) == list(range(1, 19))


@pytest.mark.slow
def test_training_improves_and_constraints_hold(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    weights = train(LineTask(epochs=12), recorder)
    assert recorder.scores[-1] > recorder.scores[0]
    assert weights["1.bias"].item() <= 0.1


def test_curves_have_a_point_every_so_many_steps_and_the_last(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    train(LineTask(), recorder, log_every_steps=4)
    assert list(recorder.curve("train/loss")) == [4, 8, 12, 16, 18]
    assert recorder.curve("epoch")[8] == pytest.approx(1 + 3 / 6)
    assert {"train/bias", "train/gradient_norm", "throughput/pairs_per_s", "throughput/waiting"} <= recorder.points[0][
        1
    ].keys()
    rates = recorder.curve("learning_rate/head_decay")
    assert rates[4] > rates[16] > 0


def test_figures_beside_the_loss_come_on_logged_steps_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    train(LineTask(), recorder, log_every_steps=2, watch_every_steps=5)
    assert list(recorder.curve("game/spread")) == [6, 10, 16, 18]
    assert list(recorder.curve("train/loss")) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert "train/game/spread" not in recorder.points[2][1]


def test_checkpoints_within_an_epoch_are_never_the_best(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    train(LineTask(), recorder, checkpoint_every_steps=3)
    # Steps 3, 6, 9, 12 and 15 lie within an epoch; 5, 11 and 18 end one.
    inside = [score == UNSCORED for score in recorder.scores]
    assert inside == [True, False, True, True, False, True, True, False]
    assert (tmp_path / "0" / WEIGHTS).exists()
    assert (tmp_path / "0" / DESCRIPTION).exists()


def test_validations_within_an_epoch_change_nothing_but_the_curve(tmp_path: Path) -> None:
    plain, watched = Recorder(tmp_path / "plain"), Recorder(tmp_path / "watched")
    expected = train(LineTask(), plain)
    found = train(LineTask(), watched, validations_per_epoch=3)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert watched.curve("train/loss") == plain.curve("train/loss")
    # Of 5, 6 and 7 steps the thirds are done after 2 and 4, 2 and 4, 3 and 5.
    assert list(watched.curve(SCORE)) == [2, 4, 5, 7, 9, 11, 14, 16, 18]
    assert [watched.curve("epoch")[step] for step in (2, 7, 18)] == pytest.approx([2 / 5, 1 + 2 / 6, 3])
    # They can be gone on from, and only the ends of epochs may be the best.
    assert [score for score in watched.scores if score > UNSCORED] == plain.scores
    assert len(watched.scores) == 9


@pytest.mark.slow
@pytest.mark.parametrize("interrupt_after", range(1, 9))
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path, interrupt_after: int) -> None:
    whole, first, second = (Recorder(tmp_path / name) for name in ("whole", "first", "second"))
    expected = train(LineTask(), whole, checkpoint_every_steps=3)

    first.interrupt_after = interrupt_after
    before, after = LineTask(), LineTask()
    with pytest.raises(InterruptError):
        train(before, first, checkpoint_every_steps=3)
    checkpoint = tmp_path / "first" / str(interrupt_after - 1)
    found = train(after, second, resume=checkpoint, checkpoint_every_steps=3)

    assert before.seen + after.seen == list(LineTask().batches(Position())), "goes on with the next batch"
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert first.curve("train/loss") | second.curve("train/loss") == whole.curve("train/loss")
    # Every checkpoint holds all that was told before it, also before an interruption.
    assert load_curve(checkpoint) == first.points
    last = load_curve(tmp_path / "second" / str(len(second.scores) - 1)) if second.scores else load_curve(checkpoint)
    assert last == first.points + second.points


def test_resuming_a_finished_training_does_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "first")
    expected = train(LineTask(), recorder)
    task, again = LineTask(), Recorder(tmp_path / "again")
    found = train(task, again, resume=tmp_path / "first" / str(EPOCHS - 1))
    assert task.seen == again.points == []
    assert torch.equal(found["1.weight"], expected["1.weight"])


def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(tmp_path: Path) -> None:
    task, recorder = LineTask(poisoned=(1, 2)), Recorder(tmp_path)
    loop = TrainingLoop(task, device=CPU, reporter=recorder, settings=LoopSettings())
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is nan at step 7, in a batch of the videos of epoch 1, step 2\."
    ):
        loop.run()
    assert all(parameter.isfinite().all() for parameter in loop.core.parameters())
    assert recorder.scores[-1] > UNSCORED


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam"])
@pytest.mark.parametrize(
    ("settings", "saved", "steps"),
    [({}, 1, 10), ({"checkpoint_every_steps": 1}, 7, 8), ({"log_every_steps": 1000}, 1, 11)],
)
def test_on_a_gpu_a_loss_that_is_not_finite_stops_before_anything_is_saved(
    tmp_path: Path, settings: dict[str, int], saved: int, steps: int, optimizer: Any
) -> None:
    """It is looked at when the next point is logged, or before the next validation or checkpoint."""
    config = OptimizerConfig(lr=0.05, name=optimizer)
    task, recorder = LineTask(poisoned=(1, 2), optimizer_config=config), Recorder(tmp_path)
    with absent_device():
        loop = TrainingLoop(task, device=ABSENT, reporter=recorder, settings=LoopSettings(**settings))
        with pytest.raises(
            NonFiniteLossError, match=r"the loss is nan at step 7, in a batch of the videos of epoch 1, step 2\."
        ):
            loop.run()
    assert len(recorder.scores) == saved
    assert len(task.seen) == steps
    for number in range(saved):
        weights = load_file(tmp_path / str(number) / WEIGHTS)
        assert all(weight.isfinite().all() for weight in weights.values())
    assert all(math.isfinite(value) for _, metrics in recorder.points for value in metrics.values())
    if optimizer == "bert_adam":
        assert all(values(parameter).isfinite().all() for parameter in loop.core.parameters())


@pytest.mark.slow
def test_scaled_gradients_that_overflow_cost_a_step_and_resume_where_they_were(tmp_path: Path) -> None:
    whole, first, second = (Recorder(tmp_path / name) for name in ("whole", "first", "second"))
    settings: dict[str, Any] = {"precision": "float16", "checkpoint_every_steps": 1}
    task = LineTask(factor=1e4)
    options = LoopSettings(log_every_steps=1, **settings)
    loop = TrainingLoop(task, device=CPU, reporter=whole, settings=options)
    start = loop.scaler.get_scale()
    expected = loop.run().state_dict()
    assert loop.scaler.get_scale() < start, "the first steps overflow, and are left out"
    assert all(weight.isfinite().all() for weight in expected.values())

    first.interrupt_after = 3
    with pytest.raises(InterruptError):
        train(LineTask(factor=1e4), first, **settings)
    found = train(LineTask(factor=1e4), second, resume=tmp_path / "first" / "2", **settings)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_runs_with_the_same_seed_are_the_same(tmp_path: Path) -> None:
    one, other, third = (
        train(LineTask(seed=seed), Recorder(tmp_path / str(number))) for number, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one["1.weight"], other["1.weight"])
    assert not torch.equal(one["1.weight"], third["1.weight"])
