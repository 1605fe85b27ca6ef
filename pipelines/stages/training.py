"""What the training stages ``estimator``, ``retrieval`` and ``video_qa`` share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hbi_models.config_fields import require
from pipelines.models.clip_weights import handed_out
from pipelines.models.folder import FRAMES_JSON, MODEL, SELECTION
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TrainResources
from pipelines.recipe.training import CheckpointConfig, Precision
from pipelines.stages.features import stored_videos
from pipelines.stages.settings import counting
from pipelines.stages.stage import StageContext
from pipelines.train.files import RAY_SNAPSHOT
from pipelines.train.history import History
from pipelines.workspace.artifact import Artifact, plain
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    from pipelines.splits import QuestionView, SplitView
    from pipelines.train.loop import Task
    from pipelines.train.pair_task import TrainingData
    from pipelines.train.retrieval import RetrievalTask
    from pipelines.train.video_qa import VideoQATask

logger = logging.getLogger(__name__)


def progress_of_training(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
    """How far an interrupted training came; it resumes from its last checkpoint before that step."""
    points = History(output).points
    if points:
        return f"stopped at step {points[-1][0]:,}"
    # If a run is stopped in its first second, its first points may not have reached the history.
    return "stopped after its first checkpoint" if output.exists(RAY_SNAPSHOT) else None


def teacher_inputs(recipe: Recipe) -> tuple[str, ...]:
    """The stage whose model teaches, if there is one."""
    return ("estimator",) if recipe.model.game.teacher == "estimator" else ()


def training_data(recipe: Recipe, context: StageContext) -> TrainingData:
    """What a training on frames, or on features of them, reads."""
    from pipelines.train.pair_task import TrainingData

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
    recipe: Recipe,
    context: StageContext,
    task: Task[Any],
    *,
    checkpoint: CheckpointConfig,
    precision: Precision,
    compiled: bool = False,
) -> dict[str, float]:
    """Trains ``task``; returns its last validation metrics."""
    from pipelines.train.loop import LoopSettings
    from pipelines.train.trainer import train_task

    # The kind of a task is the name of its stage, and of the sections with its settings.
    resources: TrainResources = getattr(recipe.resources, task.kind)
    return train_task(
        task,
        context.output,
        context.tracker,
        resources=resources,
        settings=LoopSettings(
            checkpoint_every_steps=checkpoint.every_steps,
            log_every_steps=recipe.tracking.every_steps,
            precision=precision,
            pairs_at_once=resources.pairs_at_once,
            compiled=compiled,
        ),
        trial=context.trial,
    )


def train_on_pairs(
    recipe: Recipe,
    context: StageContext,
    task: type[RetrievalTask | VideoQATask],
    view: SplitView | QuestionView,
    *,
    data: TrainingData,
    max_texts: int | None,
    chosen_by: str,
    validated: SplitView | QuestionView,
    complete: Callable[[Storage], None] = lambda model: None,
    **settings: Any,
) -> dict[str, float]:
    """Trains a model on the videos and texts of ``view``; its folder then holds all that using the model needs.

    Args:
        recipe: of the run.
        context: of the stage.
        task: what kind of training; its ``kind`` names the sections of the recipe.
        view: what is trained on.
        data: where the training finds it, and what it is validated with.
        max_texts: texts of a video used per epoch; None = all.
        chosen_by: the score by which the training chooses its checkpoint, in words.
        validated: what it is validated with.
        complete: writes into the model's folder what this kind of model needs besides its weights.
        settings: arguments of this kind of task in addition to the common ones.

    Returns:
        The last validation metrics.

    Raises:
        ValueError: a frozen encoder's weights were replaced during the training.
    """
    from pipelines.train.pairs import steps_of_epochs

    say_what_is_left_out(task.kind, view)
    training = getattr(recipe, task.kind)
    made = task(
        training=training,
        seed=recipe.seed,
        data=data,
        loader_processes=getattr(recipe.resources, task.kind).loader_processes,
        steps_per_epoch=steps_of_epochs(
            view.texts_per_video,
            batch_size=training.batch_size,
            seed=recipe.seed,
            epochs=training.epochs,
            max_texts=max_texts,
        ),
        clip_weights=handed_out(context.workspace, recipe.model.clip),
        **settings,
    )
    clip = recipe.model.clip
    start = counting(training), counting(clip, "training")
    metrics = train(
        recipe,
        context,
        made,
        checkpoint=training.checkpoint,
        precision=training.precision,
        compiled=bool(training.compiled),
    )
    # A frozen encoder is in no checkpoint, so the end of the training has read it again from where it began.
    require(
        clip.train != "none" or start == (counting(training), counting(clip, "training")),
        f"{task.kind}: a file of its frozen encoder ({training.init_checkpoint or clip.pretrained}) was replaced in "
        "the training; put the former one back, and run the same command again: it goes on from the last checkpoint",
    )
    model = context.output.folder(MODEL)
    complete(model)
    model.write_json(SELECTION, _selection(recipe, training, chosen_by, validated, metrics["best/score"]))
    # A model that reads another model's features cannot search by itself.
    if recipe.data.features is None:
        model.write_json(FRAMES_JSON, plain(recipe.frames))
        context.tracker.log_model(model)
    return metrics


def _selection(
    recipe: Recipe, training: Any, score: str, validated: SplitView | QuestionView, best: float
) -> dict[str, Any]:
    """How a checkpoint was chosen. Evaluations quote it, so that one that was chosen on the tested videos is seen."""
    from pipelines.splits import positions_of_half

    videos = len(positions_of_half(validated.store.video_ids, training.validation_half))
    document = {"chosen": "last epoch, without validation", "epochs": training.epochs, "seed": recipe.seed}
    if videos:
        document |= {"chosen": f"best epoch by {score}", "split": "val", "videos": videos, "score": best}
    return document
