"""The training loop of every model: steps, schedule, validation, checkpoints, resuming.

The same loop runs on each rank of a Ray Train worker group and in a single process. It knows no model and no data set:
a :class:`Task` provides both.
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

from hbi_models.clip.adaptation import has_updates
from hbi_models.optimizer import leave_out_if, make_optimizer
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.transfer import fetched
from pipelines.models.weights import fill, fixed_weights, load_weights, save_model
from pipelines.recipe.training import Precision
from pipelines.resources.device import arithmetic, describe_device, require_precision
from pipelines.train.averaging import WeightAverage
from pipelines.train.checkpoints import UNSCORED, Position, load_curve, load_training, save_curve, save_training
from pipelines.train.collectives import mean_over_ranks, rank, together, world_size
from pipelines.train.compiling import compile_parts
from pipelines.train.files import SCORE as SCORE
from pipelines.train.history import Point
from pipelines.train.non_finite import NonFiniteLossError as NonFiniteLossError
from pipelines.train.non_finite import Watch
from pipelines.train.parts import PartedTask, backward_in_parts, require_separable
from pipelines.train.seeds import step_seed

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


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

    def batches(self, position: Position, device: torch.device) -> Generator[Batch, None, None]:
        """This rank's batches from ``position`` to the end of the training, epoch after epoch, for ``device``."""
        ...

    def loss(
        self, model: nn.Module, batch: Batch, device: torch.device, *, watch: bool = False
    ) -> Mapping[str, Tensor]:
        """Named parts of the loss, of which ``loss`` is minimised; with ``watch`` also figures beside it.

        The names of such figures hold a slash.
        """
        ...

    def after_step(self, model: nn.Module) -> None:
        """Applies the constraints on the weights."""
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
    """Receives the reports of a rank; every rank calls it equally often."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point of each named curve."""
        ...

    def checkpoint(self, folder: Path | None, score: float) -> None:
        """A checkpoint: a folder on rank 0, None elsewhere; the folder is removed afterwards."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; nothing here changes the trained model but ``precision`` and, by rounding, ``pairs_at_once``
    and ``compiled``."""

    checkpoint_every_steps: int | None = None
    log_every_steps: int = 5
    watch_every_steps: int = 25
    """After this many steps, the next logged step also asks the task for figures beside its loss, which may cost
    another backward pass."""
    precision: Precision = "float32"
    validations_per_epoch: int = 1
    """Those before the epoch's end are saved to go on from, never as the best."""
    pairs_at_once: int | None = None
    """Pairs of this rank that pass through the model at once; null = all. The loss is that of the whole batch."""
    compiled: bool = False
    """Compile towers and predictors."""


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
        # The initial weights, alike on all ranks. At the end the trainer draws a frozen encoder again from this seed.
        torch.manual_seed(task.seed)
        together(lambda: require_precision(settings.precision, device))
        self.core = together(lambda: task.make_model().to(device))
        self.total_steps = sum(map(task.steps, range(task.epochs)))
        self.optimizer, self.schedule = make_optimizer(self.core, task.optimizer_config, self.total_steps)
        # Gradients of float16 are scaled, lest small ones become 0; elsewhere nothing is.
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self.average = WeightAverage.of(self.core, task.optimizer_config, self.total_steps)
        self.position = Position()
        self._watch = Watch(self.scaler)
        self.curve: list[Point] = []
        """Every point from the start of the training, also those that were reported before it was interrupted."""
        if resume is not None:
            together(lambda: self._resume(resume))
        if settings.pairs_at_once is not None:
            if not isinstance(task, PartedTask):
                raise ValueError(
                    f"pairs_at_once is {settings.pairs_at_once}, and the loss of a training of kind {task.kind!r} has "
                    "no pairs to take apart; unset it"
                )
            require_separable(task, self.core)
        if settings.compiled:
            compile_parts(self.core)
        logger.info("training in %s on %s", settings.precision, describe_device(device))
        self.model: nn.Module = self.core
        if world_size() > 1:
            # No search for unused parameters is needed: each that is trained gets a gradient in every step. Buffers do
            # not change, so they need not be sent.
            self.model = DistributedDataParallel(self.core, gradient_as_bucket_view=True, broadcast_buffers=False)

    def _resume(self, folder: Path) -> None:
        saved = load_training(folder, optimizer=self.optimizer, scaler=self.scaler)
        fixed = fixed_weights(self.core)
        if saved.weights is None:
            load_weights(folder, self.core, left_out=fixed)
        else:
            fill(self.core, saved.weights, source=str(folder), left_out=fixed)
        if self.average is not None:
            self.average.restore(saved.average)
        self.position = saved.position
        self.curve = load_curve(folder)
        self.schedule.load_state_dict(dict(saved.schedule))
        logger.info("resumed at epoch %d, step %d", self.position.epoch, self.position.step)

    def run(self) -> nn.Module:
        """Trains to the end and returns the model.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            OtherRankError: another rank cannot go on, because of its data, its storage or its checkpoint.
        """
        meter = _Throughput()
        # Whatever loads the batches ends with the training: Ray kills what is left, which leaves its files behind.
        with closing(together(lambda: self.task.batches(self.position, self.device))) as batches:
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
            batch = together(lambda: next(batches))
            meter.waited(time.monotonic() - waited)
            parts, gradient_norm = self._step(batch)
            self.position = replace(
                self.position, step=self.position.step + 1, step_in_epoch=self.position.step_in_epoch + 1
            )
            meter.stepped(self.task.pairs(batch) * world_size())
            if self._is_logged(self.position.step):
                self._log(parts, gradient_norm, meter)
            if self.position.step_in_epoch < steps:
                self._within_epoch(steps, meter)

    def _is_logged(self, step: int) -> bool:
        return step % self.settings.log_every_steps == 0 or step == self.total_steps

    def _is_watched(self, step: int) -> bool:
        """Depends on the step alone, so all ranks agree, also after a restart. Figures need collectives."""
        before, every = step - self.settings.log_every_steps, self.settings.watch_every_steps
        return self._is_logged(step) and (step // every > before // every or step == self.total_steps)

    def _step(self, batch: Batch) -> tuple[Mapping[str, Tensor], Tensor]:
        # Seeded in every step, so that a step draws the same random numbers after a restart. ``PairTask.draws`` takes
        # this seed back out of torch.
        torch.manual_seed(step_seed(self.task.seed, self.position.step))
        # Points carry the number of steps that are done, so this step is logged as the next one.
        parts = self._backward(batch, watch=self._is_watched(self.position.step + 1))
        # The bound on the norm is one of unscaled gradients.
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.core.parameters() if parameter.grad is not None]
        # Gradients are means over the ranks by now, so each rank has the same norm and clips alike.
        norm = nn.utils.clip_grad_norm_(trained, self.task.optimizer_config.max_grad_norm)
        self._watch.note(self.position.step, norm, parts, self.task.row_names(batch))
        if self.device.type == "cpu":
            # Here a number is read at once, before it does any harm.
            self._watch.look()
        elif not self.scaler.is_enabled():
            # Nobody has read the norm of this step yet, so the device itself decides whether the step is taken.
            leave_out_if(self.optimizer, norm.isfinite().logical_not())
        # Where gradients are scaled, a step with one that is not finite is left out, and the next are scaled less.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Also after a step that was left out: the learning rate is a function of the number of steps.
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Before the average, which then keeps the constraints, too.
        self.task.after_step(self.core)
        if self.average is not None:
            self.average.update(self.position.step + 1)
        return parts, norm

    def _backward(self, batch: Batch, *, watch: bool = False) -> Mapping[str, Tensor]:
        """The parts of the loss, whose gradients the parameters then hold; with ``watch`` figures beside it, too."""
        at_once = self.settings.pairs_at_once
        if at_once is not None and at_once < self.task.pairs(batch):
            assert isinstance(self.task, PartedTask)
            return backward_in_parts(
                self.task,
                self.model,
                batch,
                self.device,
                pairs_at_once=at_once,
                autocast=self._autocast,
                scaled=self.scaler.scale,
                watch=watch,
            )
        with self._autocast():
            parts = self.task.loss(self.model, batch, self.device, watch=watch)
        self.scaler.scale(parts["loss"]).backward()  # type: ignore[no-untyped-call]
        return {name: part.detach() for name, part in parts.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        return arithmetic(self.settings.precision, self.device)

    def _log(self, parts: Mapping[str, Tensor], gradient_norm: Tensor, meter: _Throughput) -> None:
        self._watch.look()
        means = mean_over_ranks(torch.stack([value.float() for value in (*parts.values(), gradient_norm)]))
        (seen,) = fetched([means])
        names = [name if "/" in name else f"train/{name}" for name in (*parts, "gradient_norm")]
        # A step of scaled gradients that was left out has a loss and no norm.
        metrics = {name: value for name, value in zip(names, seen.tolist(), strict=True) if math.isfinite(value)}
        for group in self.optimizer.param_groups:
            metrics[f"learning_rate/{group['name']}"] = float(group["lr"])
        metrics["epoch"] = self.position.epoch + self.position.step_in_epoch / self.task.steps(self.position.epoch)
        self._report({**metrics, **meter.read()})

    def _within_epoch(self, steps: int, meter: _Throughput) -> None:
        """Validates and saves after each part of an epoch; saves without validation where only that is due."""
        parts, done = self.settings.validations_per_epoch, self.position.step_in_epoch
        every = self.settings.checkpoint_every_steps
        # At the step that completes the next of ``parts`` equal parts of the epoch, found in whole numbers.
        if done * parts // steps > (done - 1) * parts // steps:
            self._validate(self.position.epoch + done / steps)
            self._save(UNSCORED)
            self.model.train()
            # The throughput is that of steps, without the time of a validation.
            meter.restart()
        elif every and self.position.step % every == 0:
            self._save(UNSCORED)

    def _end_epoch(self) -> None:
        # First, so that whoever resumes from this checkpoint begins the next epoch. ``checkpoints.inspect`` knows a
        # scored checkpoint by its ``step_in_epoch`` of 0.
        self.position = replace(self.position, epoch=self.position.epoch + 1, step_in_epoch=0)
        self._save(self._validate(float(self.position.epoch)))

    def _validate(self, epoch: float) -> float:
        self._watch.look()
        self.model.eval()
        with self._chosen_weights(), torch.inference_mode(), self._autocast():
            # The core: DistributedDataParallel's forward pass may hold a collective, and ranks may have unequal numbers
            # of batches.
            metrics = dict(self.task.validate(self.core, self.device))
        self._report({"epoch": epoch, **metrics})
        return float(metrics[SCORE])

    def _chosen_weights(self) -> AbstractContextManager[Any]:
        """A context in which the model has the weights that are validated and kept: the average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def _report(self, metrics: Mapping[str, float]) -> None:
        self.curve.append((self.position.step, dict(metrics)))
        self.reporter.metrics(self.position.step, metrics)

    def _save(self, score: float) -> None:
        self._watch.look()
        with ExitStack() as scratch:
            folder = together(lambda: self._written(scratch) if rank() == 0 else None)
            # On every rank, because Ray Train's report is a barrier of all.
            self.reporter.checkpoint(folder, score)

    def _written(self, scratch: ExitStack) -> Path:
        """A folder with a checkpoint, which lasts as long as ``scratch``."""
        folder = Path(scratch.enter_context(TemporaryDirectory()))
        # A frozen encoder is most of a model, and the same in every checkpoint: the chosen one gets it at the end.
        fixed = fixed_weights(self.core)
        with self._chosen_weights():
            save_model(folder, self.core, kind=self.task.kind, config=self.task.model_config, leave_out=fixed)
        # Outside of the context above, the model has again the weights that are trained.
        averaged = self.average is not None and self.average.started
        weights = {name: value for name, value in self.core.state_dict().items() if name not in fixed}
        save_training(
            folder,
            optimizer=self.optimizer,
            schedule=self.schedule.state_dict(),
            position=self.position,
            scaler=self.scaler,
            weights=weights if averaged or has_updates(self.core) else None,
            average=self.average.state() if self.average is not None and averaged else None,
        )
        save_curve(folder, self.curve)
        return folder


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
        """The values since the last reading."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        figures = {"throughput/pairs_per_s": self._pairs / seconds, "throughput/waiting": self._waited / seconds}
        self.restart()
        return figures
