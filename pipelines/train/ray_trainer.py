"""Runs a training task on a Ray Train worker group.

Ray Train restarts the group from the last checkpoint when a worker or a node dies, and resumes
when the same command runs again: its folder lies in the stage's own folder, whose name is the
stage's fingerprint, so a different experiment never resumes this one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, TypedDict

import ray
import ray.train
import torch
from ray.train import Checkpoint as RayCheckpoint
from ray.train import (
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from pipelines.recipe.resources import TrainResources
from pipelines.resources.device import compute_device
from pipelines.resources.ray_session import worker_gpus
from pipelines.train.collectives import OtherRankError
from pipelines.train.files import RAY_TRAIN
from pipelines.train.history import Point
from pipelines.train.loop import SCORE, LoopSettings, NonFiniteLossError, Task, TrainingLoop
from pipelines.train.metric_sink import POLL_S, fetch, start_sink
from pipelines.train.unlisted import best_checkpoint, place_to_go_on_from
from pipelines.workspace.errors import StorageError, remedy
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What a worker receives."""

    task: Task[Any]
    settings: LoopSettings
    sink: Any
    place: str
    """Where checkpoints go, for messages."""
    start: Storage | None
    """A checkpoint to resume from if Ray knows of none."""


class _RayReporter:
    """Sends metrics to the driver and checkpoints to Ray Train."""

    def __init__(self, sink: Any, place: str) -> None:
        self._sink, self._place = sink, place
        self._idle = threading.Event()
        self._idle.set()
        self._is_first = ray.train.get_context().get_world_rank() == 0

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._is_first:
            self._sink.put.remote([(step, dict(metrics))])

    def checkpoint(self, folder: Path | None, score: float) -> None:
        checkpoint = None
        if folder is not None:
            # The steps go on while Ray copies a checkpoint to the storage and then commits it. There is one at a time
            # on the way, which the folder is handed over to: the loop removes its own.
            self._idle.wait()
            self._idle.clear()
            # Both folders lie in TMPDIR, so nothing is copied; a folder may be renamed to an empty one.
            checkpoint = RayCheckpoint.from_directory(str(folder.rename(mkdtemp())))
        ray.train.report(
            {SCORE: score},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
        )

    def _upload(self, checkpoint: RayCheckpoint, name: str) -> RayCheckpoint:
        """Copies a checkpoint to the storage, in a thread of Ray's, which then removes it here and commits it.

        Raises:
            StorageError: it could not be copied; Ray ends the training with it.
        """
        try:
            kept: RayCheckpoint = ray.train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)
            return kept
        except OSError as error:
            raise StorageError(f"cannot keep a checkpoint in {self._place}: {error}. {remedy(error)}") from error
        finally:
            self._idle.set()


class _Done(TypedDict):
    """What a worker returns: plain data, because Ray's controller reads it, too, and would load our modules."""

    curve: list[Point]
    non_finite: Mapping[str, Any] | None
    """The report of an error that a restart would not solve."""


def _work(config: dict[str, Any]) -> _Done:
    """The body of every worker."""
    job: _Job = ray.get(config["job"])
    device = compute_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    reporter = _RayReporter(job.sink, job.place)
    with _checkpoint(job) as folder:
        loop = TrainingLoop(job.task, device=device, reporter=reporter, settings=job.settings, resume=folder)
    try:
        loop.run()
    except NonFiniteLossError as error:
        # Returned and not raised: Ray would start the workers again, to the same end.
        return {"curve": loop.curve, "non_finite": error.report}
    return {"curve": loop.curve, "non_finite": None}


@contextmanager
def _checkpoint(job: _Job) -> Iterator[Path | None]:
    """The folder of the checkpoint to resume from, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            yield Path(folder)
    elif job.start is not None:
        with TemporaryDirectory() as scratch:
            yield job.start.download("", Path(scratch))
    else:
        yield None


def train_on_workers(
    task: Task[Any],
    output: Storage,
    settings: LoopSettings,
    resources: TrainResources,
    receive: Callable[[list[Point]], None],
) -> tuple[list[Point], float, Storage]:
    """Trains ``task`` on a worker group in ``output``; returns the whole curve, and the best score and its checkpoint.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        ray.train.TrainingFailedError: workers died more often than ``resources.max_failures``.
    """
    gpus = worker_gpus(resources)
    start = place_to_go_on_from(output)
    sink = start_sink()
    trainer = TorchTrainer(
        _work,
        # A reference, because Ray's controller reads these settings, too, and would load the models' modules for them.
        train_loop_config={"job": ray.put(_Job(task, settings, sink, output.place(RAY_TRAIN), start))},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={
                "CPU": resources.cpus_per_worker,
                **({"GPU": gpus} if gpus else {}),
                **({"memory": resources.memory_gb_per_worker * 1e9} if resources.memory_gb_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            name=RAY_TRAIN,
            storage_path=output.path(),
            storage_filesystem=output.filesystem,
            failure_config=FailureConfig(max_failures=resources.max_failures),
            # Ray keeps the best by validation, and always the last one, which resuming needs.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
            ),
        ),
    )
    try:
        result = _fit_beside(trainer, partial(fetch, sink, receive))
    except WorkerGroupError as error:
        raise _mendable(error) or error from None
    done: _Done = result.return_value
    if (report := done["non_finite"]) is not None:
        last = {} if result.checkpoint is None else {"last_checkpoint": result.checkpoint.path}
        raise NonFiniteLossError({**report, **last})
    listed = [(Path(checkpoint.path).name, float(metrics[SCORE])) for checkpoint, metrics in result.best_checkpoints]
    best, score = best_checkpoint(output, listed)
    return done["curve"], score, output.folder(RAY_TRAIN).folder(best)


def _mendable(error: WorkerGroupError) -> Exception | None:
    """The first failure of the workers that the user can correct; Ray's own message hides it in tracebacks."""
    # Ray wraps what a worker raised, and offers no public way to unwrap it.
    found = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    mendable = [raised for raised in found if isinstance(raised, (OSError, ValueError))]
    own = [raised for raised in mendable if not isinstance(raised, OtherRankError)]
    # A worker that was stopped by another one repeats that one's error, which may be a bug of the program.
    if not mendable or (not own and len(mendable) < len(found)):
        return None
    logger.info("workers failed: %s", error)
    return (own or mendable)[0]


def _fit_beside(trainer: TorchTrainer, fetch_points: Callable[[], None]) -> Result:
    """Trains in a thread, and fetches points in the caller's thread.

    Points are fetched in the caller's thread because Tune ends a trial inside the call that reports to it. The training
    is not run in the main thread because Ray Train would replace the handler of Ctrl-C there, and an interrupted run
    would end as if it had succeeded.
    """
    done: Future[Result] = Future()

    def fit() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            done.set_exception(error)

    # A daemon thread, so that nothing waits for the rest of the training when Tune or the user ends the process.
    threading.Thread(target=fit, name="fit", daemon=True).start()
    while not wait([done], timeout=POLL_S).done:
        fetch_points()
    # What came between the last fetch and the end.
    fetch_points()
    return done.result()
