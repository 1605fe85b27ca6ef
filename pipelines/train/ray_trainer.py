"""Runs a training task on a Ray Train worker group and keeps its best checkpoint.

Ray Train restarts the group from the last checkpoint when a worker or a node dies, and resumes
when the same command runs again: its folder lies in the stage's own folder, whose name is the
stage's fingerprint, so a different experiment never resumes this one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.configs import TrainResources
from pipelines.progress import Progress
from pipelines.ray_session import cluster_gpus
from pipelines.stages import StageContext
from pipelines.train.checkpoints import DESCRIPTION, WEIGHTS
from pipelines.train.layout import MODEL
from pipelines.train.loop import SCORE, LoopSettings, NonFiniteLossError, Task, TrainingLoop
from pipelines.train.metric_sink import History, MetricSink, Point, SinkPump

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What a worker receives."""

    task: Task[Any]
    settings: LoopSettings
    precision: str
    sink: Any


class _RayReporter:
    """Sends metrics to the driver and checkpoints to Ray Train."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._is_first:
            self._sink.put.remote([(step, dict(metrics))])

    def checkpoint(self, folder: Path | None, score: float) -> None:
        checkpoint = None if folder is None else Checkpoint.from_directory(str(folder))
        ray.train.report({SCORE: score}, checkpoint=checkpoint)


def _work(config: dict[str, Any]) -> str | None:
    """The body of every worker; returns what went wrong where a restart would not help."""
    job: _Job = config["job"]
    device = ray.train.torch.get_device()
    bfloat16 = job.precision == "bfloat16" or (job.precision == "auto" and device.type == "cuda")
    settings = LoopSettings(
        checkpoint_every_steps=job.settings.checkpoint_every_steps,
        log_every_steps=job.settings.log_every_steps,
        bfloat16=bfloat16,
    )
    reporter = _RayReporter(job.sink)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        loop = TrainingLoop(job.task, device=device, reporter=reporter, settings=settings)
    else:
        with checkpoint.as_directory() as folder:
            loop = TrainingLoop(job.task, device=device, reporter=reporter, settings=settings, resume=Path(folder))
    try:
        loop.run()
    except NonFiniteLossError as error:
        return str(error)
    return None


def train_on_ray(
    task: Task[Any],
    context: StageContext,
    *,
    resources: TrainResources,
    settings: LoopSettings,
    precision: str = "auto",
) -> dict[str, float]:
    """Trains ``task`` and commits the best checkpoint's weights to ``<output>/model``.

    Returns:
        The number of steps and the last value of every validation metric, with the best score.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        ray.train.TrainingFailedError: workers died more often than ``resources.max_failures``.
    """
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster_gpus() >= resources.workers else 0.0
    total = sum(map(task.steps, range(task.epochs)))
    history = History(context.output)
    sink = MetricSink.remote()  # type: ignore[attr-defined]
    with Progress(task.kind, total=total, unit="steps") as progress:

        def receive(points: list[Point]) -> None:
            history.extend(points)
            context.tracker.log_batch(points)
            for step, metrics in points:
                progress.advance_to(step, _note(metrics))

        with SinkPump(sink, receive):
            result = TorchTrainer(
                _work,
                train_loop_config={"job": _Job(task, settings, precision, sink)},
                scaling_config=ScalingConfig(
                    num_workers=resources.workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
                ),
                run_config=RunConfig(
                    name="train",
                    storage_path=context.output.path(),
                    storage_filesystem=context.output.filesystem,
                    failure_config=FailureConfig(max_failures=resources.max_failures),
                    # The best by validation, and always the last one, which resuming needs.
                    checkpoint_config=CheckpointConfig(
                        num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
                    ),
                ),
            ).fit()
    if result.return_value is not None:
        raise NonFiniteLossError(result.return_value)
    best, score = max(
        ((checkpoint, metrics[SCORE]) for checkpoint, metrics in result.best_checkpoints), key=lambda pair: pair[1]
    )
    _keep_model(best, context)
    return {"steps": total, **history.latest("validation/"), "best/score": float(score)}


def _keep_model(checkpoint: Checkpoint, context: StageContext) -> None:
    """Copies weights and description of the chosen checkpoint to its place."""
    with TemporaryDirectory() as scratch:
        folder = Path(checkpoint.to_directory(scratch))
        for name in (WEIGHTS, DESCRIPTION):
            context.output.write_bytes(f"{MODEL}/{name}", (folder / name).read_bytes())


def _note(metrics: Mapping[str, float]) -> str:
    shown = {
        "train/loss": "loss {:.3f}",
        "throughput/pairs_per_s": "{:.0f} pairs/s",
        SCORE: "validation score {:.2f}",
    }
    return ", ".join(form.format(metrics[name]) for name, form in shown.items() if name in metrics)
