"""The training loop of every model: steps, schedule, validation, checkpoints, resuming.

The loop runs on each rank of a Ray Train worker group, and as it is in a single process. It
knows no model and no data set: a :class:`Task` provides both.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hbi_models.configs import OptimizerConfig
from hbi_models.optimizer import make_optimizer
from pipelines.models.weights import fixed_weights, load_weights, save_model
from pipelines.recipe.training import Precision
from pipelines.train.checkpoints import UNSCORED, Position, load_curve, load_training, save_curve, save_training
from pipelines.train.collectives import gather_objects, mean_over_ranks, rank, together, world_size
from pipelines.train.files import SCORE as SCORE
from pipelines.train.history import Point
from pipelines.train.seeds import step_seed

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


_NAMED_ROWS = 5


class Task(Protocol[Batch]):
    """A model, its data and its loss."""

    @property
    def kind(self) -> str:
        """What kind of model a checkpoint holds."""
        ...

    @property
    def model_config(self) -> Any:
        """Configuration of the model, a dataclass."""
        ...

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """Optimizer and schedule."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the initial weights and of everything drawn in a step."""
        ...

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        ...

    def make_model(self) -> nn.Module:
        """The model with its initial weights, drawn from the global generator of torch."""
        ...

    def steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        ...

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        """This rank's batches from ``position`` to the end of the training, epoch after epoch."""
        ...

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Mapping[str, Tensor]:
        """Named parts of the loss, of which ``loss`` is minimised."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Puts constraints on the weights back in place."""
        ...

    def row_names(self, batch: Batch) -> list[str]:
        """Ids of the rows of a batch, for the report about a loss that is not finite."""
        ...

    def pairs(self, batch: Batch) -> int:
        """Rows of a batch, for the throughput."""
        ...

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Validation metrics, ``validation/score`` among them; called on every rank."""
        ...


class Reporter(Protocol):
    """Receives what a rank reports; called on every rank, equally often."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point of each named curve."""
        ...

    def checkpoint(self, folder: Path | None, score: float) -> None:
        """A checkpoint: a folder on rank 0, None elsewhere; the folder is removed afterwards."""
        ...


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite; no weight was changed by it.

    ``report`` holds the ``step``, ``what`` was not finite, the ``value``, the ``ranks`` on which it was not
    with the ``parts`` of their loss and the ``rows`` of their batch, and, once they are known, the
    ``last_checkpoint`` and the place where the report is ``saved``.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        rows = [name for part in self.report["ranks"] for name in part["rows"]]
        listed = ", ".join(rows[:_NAMED_ROWS]) + (
            f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        )
        saved = f" (all of them: {self.report['saved']})" if "saved" in self.report else ""
        good = (
            f"; the last good checkpoint is {self.report['last_checkpoint']}"
            if "last_checkpoint" in self.report
            else ""
        )
        return (
            f"the {self.report['what']} is {self.report['value']} at step {self.report['step']}, in a batch of "
            f"{listed}{saved}{good}. Lower the learning rate, or leave the offending rows out, and run the same "
            "command again"
        )


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; nothing here changes the trained model but ``precision``."""

    checkpoint_every_steps: int | None = None
    log_every_steps: int = 5
    precision: Precision = "float32"
    validations_per_epoch: int = 1
    """Those before the epoch's end are saved to go on from, never as the best."""


class TrainingLoop(Generic[Batch]):
    """Trains the model of ``task`` on ``device`` from the checkpoint in ``resume``, or from the start."""

    def __init__(
        self,
        task: Task[Batch],
        *,
        device: torch.device,
        reporter: Reporter,
        settings: LoopSettings,
        resume: Path | None = None,
    ) -> None:
        self.task, self.device, self.reporter, self.settings = task, device, reporter, settings
        torch.manual_seed(task.seed)
        self.core = together(lambda: task.make_model().to(device), device)
        self.total_steps = sum(map(task.steps, range(task.epochs)))
        self.optimizer, self.schedule = make_optimizer(self.core, task.optimizer_config, self.total_steps)
        self.position = Position()
        self.curve: list[Point] = []
        """Every point from the start of the training, also those that were reported before it was interrupted."""
        if resume is not None:
            together(lambda: self._resume(resume), device)
        self.model: nn.Module = self.core
        if world_size() > 1:
            # Every parameter that is trained gets a gradient in every step, and no buffer changes.
            self.model = DistributedDataParallel(self.core, gradient_as_bucket_view=True)

    def _resume(self, folder: Path) -> None:
        load_weights(folder, self.core, left_out=fixed_weights(self.core))
        schedule, self.position = load_training(folder, optimizer=self.optimizer)
        self.curve = load_curve(folder)
        self.schedule.load_state_dict(dict(schedule))
        logger.info("resumed at epoch %d, step %d", self.position.epoch, self.position.step)

    def run(self) -> nn.Module:
        """Trains to the end and returns the model.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            OtherRankError: another rank cannot go on, because of its data, its storage or its checkpoint.
        """
        meter = _Throughput()
        # Whatever loads the batches ends with the training: Ray kills what is left, which leaves its files behind.
        with closing(together(lambda: self.task.batches(self.position), self.device)) as batches:
            while self.position.epoch < self.task.epochs:
                steps = self.task.steps(self.position.epoch)
                self._epoch(steps, batches, meter)
                self._end_epoch()
                meter.restart()
        return self.core

    def _epoch(self, steps: int, batches: Iterator[Batch], meter: _Throughput) -> None:
        """The rest of an epoch."""
        self.model.train()
        while self.position.step_in_epoch < steps:
            waited = time.monotonic()
            batch = together(lambda: next(batches), self.device)
            meter.waited(time.monotonic() - waited)
            parts, gradient_norm = self._step(batch)
            self.position = replace(
                self.position, step=self.position.step + 1, step_in_epoch=self.position.step_in_epoch + 1
            )
            meter.stepped(self.task.pairs(batch) * world_size())
            if self.position.step % self.settings.log_every_steps == 0 or self.position.step == self.total_steps:
                self._log(parts, gradient_norm, meter)
            if self.position.step_in_epoch < steps:
                self._within_epoch(steps, meter)

    def _step(self, batch: Batch) -> tuple[Mapping[str, Tensor], Tensor]:
        # Whatever draws random numbers in a step draws the same ones after a restart.
        torch.manual_seed(step_seed(self.task.seed, self.position.step))
        with self._autocast():
            parts = self.task.loss(self.model, batch, self.device)
        loss = parts["loss"]
        # All ranks must stop together: one that went on would wait for the others' gradients.
        if not torch.isfinite(mean_over_ranks(loss)):
            raise self._non_finite("loss", loss, parts, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [parameter for parameter in self.core.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, self.task.optimizer_config.max_grad_norm)
        # The norm is the same on all ranks. A step with such a gradient would leave no good weight to save.
        if not torch.isfinite(norm):
            raise self._non_finite("gradient", norm, parts, batch)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(self.core)
        return parts, norm

    def _non_finite(self, what: str, value: Tensor, parts: Mapping[str, Tensor], batch: Batch) -> NonFiniteLossError:
        """What to raise, on every rank the same; where some ranks' losses are finite, the others are reported."""
        mine = {
            "rank": rank(),
            "value": _as_json(value),
            "parts": {name: _as_json(part) for name, part in parts.items()},
            "rows": self.task.row_names(batch),
        }
        ranks = gather_objects(mine)
        offending = [part for part in ranks if isinstance(part["value"], str)] or ranks
        return NonFiniteLossError(
            {"what": what, "step": self.position.step, "value": offending[0]["value"], "ranks": offending}
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _log(self, parts: Mapping[str, Tensor], gradient_norm: Tensor, meter: _Throughput) -> None:
        means = mean_over_ranks(torch.stack([value.detach().float() for value in parts.values()]))
        metrics = {f"train/{name}": value for name, value in zip(parts, means.tolist(), strict=True)}
        metrics["train/gradient_norm"] = gradient_norm.item()
        for group in self.optimizer.param_groups:
            metrics[f"learning_rate/{group['name']}"] = float(group["lr"])
        metrics["epoch"] = self.position.epoch + self.position.step_in_epoch / self.task.steps(self.position.epoch)
        self._report({**metrics, **meter.read()})

    def _within_epoch(self, steps: int, meter: _Throughput) -> None:
        """Validates and saves where a part of the epoch is done, or saves alone where that is due."""
        parts, done = self.settings.validations_per_epoch, self.position.step_in_epoch
        every = self.settings.checkpoint_every_steps
        if done * parts // steps > (done - 1) * parts // steps:
            self._validate(self.position.epoch + done / steps)
            self._save(UNSCORED)
            self.model.train()
            meter.restart()
        elif every and self.position.step % every == 0:
            self._save(UNSCORED)

    def _end_epoch(self) -> None:
        self.position = replace(self.position, epoch=self.position.epoch + 1, step_in_epoch=0)
        self._save(self._validate(float(self.position.epoch)))

    def _validate(self, epoch: float) -> float:
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            metrics = dict(self.task.validate(self.core, self.device))
        self._report({"epoch": epoch, **metrics})
        return float(metrics[SCORE])

    def _report(self, metrics: Mapping[str, float]) -> None:
        self.curve.append((self.position.step, dict(metrics)))
        self.reporter.metrics(self.position.step, metrics)

    def _save(self, score: float) -> None:
        with ExitStack() as scratch:
            folder = together(lambda: self._written(scratch) if rank() == 0 else None, self.device)
            self.reporter.checkpoint(folder, score)

    def _written(self, scratch: ExitStack) -> Path:
        """A folder with a checkpoint, which lasts as long as ``scratch``."""
        folder = Path(scratch.enter_context(TemporaryDirectory()))
        # A frozen encoder is most of a model, and the same in every checkpoint: the chosen one gets it at the end.
        fixed = fixed_weights(self.core)
        save_model(folder, self.core, kind=self.task.kind, config=self.task.model_config, leave_out=fixed)
        save_training(folder, optimizer=self.optimizer, schedule=self.schedule.state_dict(), position=self.position)
        save_curve(folder, self.curve)
        return folder


def _as_json(value: Tensor) -> float | str:
    """A number, or the word for one that JSON does not have."""
    number = float(value.detach())
    return number if math.isfinite(number) else str(number)


class _Throughput:
    """Pairs per second, and the share of the time spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._started, self._pairs, self._waited = time.monotonic(), 0, 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def stepped(self, pairs: int) -> None:
        self._pairs += pairs

    def read(self) -> dict[str, float]:
        """The figures since the last reading."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        figures = {"throughput/pairs_per_s": self._pairs / seconds, "throughput/waiting": self._waited / seconds}
        self.restart()
        return figures
