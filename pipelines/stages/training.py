"""What the training stages ``estimator``, ``retrieval`` and ``video_qa`` share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import CheckpointConfig, Precision
from pipelines.stages.features import stored_videos
from pipelines.stages.stage import StageContext
from pipelines.train.files import RAY_SNAPSHOT
from pipelines.train.history import History
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    from pipelines.splits import QuestionView, SplitView
    from pipelines.train.loop import Task
    from pipelines.train.pairs import TrainingData

logger = logging.getLogger(__name__)


def progress_of_training(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
    """How far an interrupted training came; it goes on from its last checkpoint before that step."""
    points = History(output).points
    if points:
        return f"stopped at step {points[-1][0]:,}"
    # A run that is stopped in its first second has its first points on their way still.
    return "stopped after its first checkpoint" if output.exists(RAY_SNAPSHOT) else None


def teacher_inputs(recipe: Recipe) -> tuple[str, ...]:
    """The stage whose model teaches, if there is one."""
    return ("estimator",) if recipe.model.game.teacher == "estimator" else ()


def training_data(recipe: Recipe, context: StageContext) -> TrainingData:
    """What a training on frames, or on features of them, reads."""
    from pipelines.train.pairs import TrainingData

    estimator, stored = context.inputs.get("estimator"), stored_videos(recipe, context)
    return TrainingData(
        manifest=context.inputs["manifest"].storage,
        frames=stored["frames"],
        frames_pool=stored["pool"],
        store=stored["store"],
        estimator=None if estimator is None else estimator.storage.folder(MODEL),
    )


def say_what_is_left_out(stage: str, view: SplitView | QuestionView) -> None:
    """Logs which videos of a split the stage cannot use, and why."""
    if view.left_out is not None:
        logger.warning("%s: %s", stage, view.left_out)


def train(
    recipe: Recipe, context: StageContext, task: Task[Any], *, checkpoint: CheckpointConfig, precision: Precision
) -> dict[str, float]:
    """Trains ``task`` on Ray; returns its last validation metrics."""
    from pipelines.train.loop import LoopSettings
    from pipelines.train.ray_trainer import train_on_ray

    return train_on_ray(
        task,
        context.output,
        context.tracker,
        resources=getattr(recipe.resources, task.kind),
        settings=LoopSettings(
            checkpoint_every_steps=checkpoint.every_steps,
            log_every_steps=recipe.tracking.every_steps,
            precision=precision,
        ),
        trial=context.trial,
    )
