"""The training stages: ``estimator``, ``retrieval`` and ``video_qa``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_pool
from pipelines.data.labels_stage import labels_pool
from pipelines.records import MANIFEST_FILE
from pipelines.stages import Artifact, Counts, Stage, StageContext, plain
from pipelines.storage import Storage
from pipelines.train.history import History
from pipelines.train.layout import (
    ESTIMATOR_METRICS,
    FRAMES_JSON,
    MODEL,
    RAY_SNAPSHOT,
    RETRIEVAL_METRICS,
    VIDEO_QA_METRICS,
)

if TYPE_CHECKING:
    from pipelines.train.pairs import TrainingData
    from pipelines.train.retrieval import RetrievalTask
    from pipelines.train.video_qa import VideoQATask

logger = logging.getLogger(__name__)


def _progress(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
    """How far an interrupted training came; it goes on from its last checkpoint before that step."""
    points = History(output).points
    if points:
        return f"stopped at step {points[-1][0]:,}"
    # A run that is stopped in its first second has its first points on their way still.
    return "stopped after its first checkpoint" if output.exists(RAY_SNAPSHOT) else None


def estimator_stage(recipe: Recipe) -> Stage:
    """Trains the estimator on the labels, or takes a given one as it is."""
    training = recipe.estimator

    def take(context: StageContext) -> Counts:
        from pipelines.train.checkpoints import save_model
        from pipelines.train.estimator import EstimatorConfig, make_estimator

        channels = recipe.model.game.estimator_channels
        with TemporaryDirectory() as scratch:
            model = make_estimator(channels, training.init_checkpoint)
            save_model(Path(scratch), model, kind="estimator", config=EstimatorConfig(channels))
            context.output.upload(Path(scratch), MODEL)
        return {"rows": 0, "errors": 0}

    def run(context: StageContext) -> Counts:
        from pipelines.train.estimator import EstimatorTask
        from pipelines.train.loop import LoopSettings
        from pipelines.train.ray_trainer import train_on_ray

        labels = context.inputs["labels"]
        pairs = int(labels.counts["train_pairs"])
        if pairs < training.batch_size:
            raise ValueError(
                f"estimator.batch_size is {training.batch_size} and there are {pairs} labelled training pairs; "
                "lower the batch size or add videos"
            )
        task = EstimatorTask(
            training=training,
            channels=recipe.model.game.estimator_channels,
            seed=recipe.seed,
            labels=labels_pool(context.workspace, recipe).storage,
            index=labels.storage,
            max_words=recipe.model.max_words,
            max_frames=recipe.model.max_frames,
            train_pairs=pairs,
        )
        metrics = train_on_ray(
            task,
            context,
            resources=recipe.resources.estimator,
            settings=LoopSettings(
                checkpoint_every_steps=training.checkpoint.every_steps, log_every_steps=recipe.tracking.every_steps
            ),
            precision="float32",
        )
        return {"rows": pairs, "errors": 0, **metrics}

    settings = plain(training)
    del settings["checkpoint"], settings["enabled"]
    return Stage(
        name="estimator",
        version=1,
        settings={**settings, "channels": recipe.model.game.estimator_channels, "seed": recipe.seed},
        inputs=("labels",) if training.epochs else (),
        run=run if training.epochs else take,
        partial=_progress,
        metrics=ESTIMATOR_METRICS,
    )


def retrieval_stage(recipe: Recipe) -> Stage:
    """Trains the retrieval model."""
    training = recipe.retrieval

    def run(context: StageContext) -> Counts:
        from pipelines.train.pairs import steps_of_epochs
        from pipelines.train.retrieval import RetrievalTask

        data = _training_data(recipe, context)
        view = data.captions("train")
        task = RetrievalTask(
            model_config=recipe.model,
            training=training,
            seed=recipe.seed,
            data=data,
            loader_processes=recipe.resources.retrieval.loader_processes,
            steps_per_epoch=steps_of_epochs(
                view.texts_per_video,
                batch_size=training.batch_size,
                seed=recipe.seed,
                epochs=training.epochs,
                max_texts=training.max_captions_per_video,
            ),
        )
        metrics = _train(recipe, context, task)
        # The folder of the model then holds all that searching with it needs.
        model = context.output.folder(MODEL)
        model.write_json(FRAMES_JSON, plain(recipe.frames))
        context.tracker.log_model(model)
        return {"rows": len(view), "errors": 0, **metrics}

    settings = plain(training)
    del settings["checkpoint"]
    return Stage(
        name="retrieval",
        version=1,
        settings={**settings, "model": plain(recipe.model), "seed": recipe.seed},
        inputs=("manifest", "frames", *_teacher(recipe)),
        run=run,
        partial=_progress,
        metrics=RETRIEVAL_METRICS,
    )


def video_qa_stage(recipe: Recipe) -> Stage:
    """Trains the question answering model."""
    training = recipe.video_qa

    def run(context: StageContext) -> Counts:
        from pipelines.data.answers import Vocabulary
        from pipelines.train.pairs import steps_of_epochs
        from pipelines.train.video_qa import VideoQATask

        data = _training_data(recipe, context)
        vocabulary = Vocabulary.read(context.inputs["answers"].storage)
        view = data.questions("train", answerable_by=vocabulary)
        asked = sum(data.questions("train").texts_per_video)
        kept = sum(view.texts_per_video)
        if kept < asked:
            logger.info(
                "video_qa: %s of %s training questions have another answer, and are left out", asked - kept, asked
            )
        task = VideoQATask(
            model_config=recipe.video_qa_model(len(vocabulary)),
            training=training,
            seed=recipe.seed,
            data=data,
            vocabulary=vocabulary,
            init_checkpoint=_start(recipe, context),
            loader_processes=recipe.resources.video_qa.loader_processes,
            steps_per_epoch=steps_of_epochs(
                view.texts_per_video,
                batch_size=training.batch_size,
                seed=recipe.seed,
                epochs=training.epochs,
                max_texts=training.max_questions_per_video,
            ),
        )
        metrics = _train(recipe, context, task)
        # The folder of the model then holds all that answering a question about a video file needs.
        model = context.output.folder(MODEL)
        vocabulary.write(model)
        model.write_json(FRAMES_JSON, plain(recipe.frames))
        context.tracker.log_model(model)
        return {"rows": kept, "errors": 0, "videos": len(view), "left_out": asked - kept, **metrics}

    settings = plain(training)
    del settings["checkpoint"], settings["answers"]
    model = plain(recipe.model)
    # Questions have their own.
    for name in ("max_words", "merging", "loss", "level_rates"):
        del model[name]
    return Stage(
        name="video_qa",
        version=1,
        settings={**settings, "model": model, "seed": recipe.seed},
        inputs=(
            *("manifest", "frames", "answers"),
            *_teacher(recipe),
            *(("retrieval",) if training.from_retrieval else ()),
        ),
        run=run,
        partial=_progress,
        metrics=VIDEO_QA_METRICS,
    )


def _start(recipe: Recipe, context: StageContext) -> str | None:
    """The checkpoint from which question answering starts; says what of it is used."""
    from pipelines.train.initial_weights import checkpoint_kind

    checkpoint = recipe.video_qa.init_checkpoint
    if recipe.video_qa.from_retrieval:
        checkpoint = context.inputs["retrieval"].storage.folder(MODEL).uri
        if seen := count_seen_test_videos(context.inputs["manifest"].storage):
            logger.warning(
                "video_qa: starts from a retrieval model that was trained on %s of the videos that questions are "
                "tested with: it has seen their captions",
                f"{seen:,}",
            )
    if checkpoint is None:
        return None
    with TemporaryDirectory() as scratch:
        kind = checkpoint_kind(checkpoint, Path(scratch))
    what = "its encoder is used, the answer heads are new" if kind == "retrieval" else "all of it is used"
    logger.info("video_qa: starts from the %s model in %s; %s", kind, checkpoint, what)
    return checkpoint


def count_seen_test_videos(manifest: Storage) -> int:
    """Training videos of the manifest that have test questions."""
    table = manifest.read_table(MANIFEST_FILE, columns=["split", "questions"])
    return sum(
        row["split"] == "train" and any(question["split"] == "test" for question in row["questions"])
        for row in table.to_pylist()
    )


def _teacher(recipe: Recipe) -> tuple[str, ...]:
    return ("estimator",) if recipe.model.game.teacher == "estimator" else ()


def _training_data(recipe: Recipe, context: StageContext) -> TrainingData:
    from pipelines.train.pairs import TrainingData

    estimator = context.inputs.get("estimator")
    return TrainingData(
        manifest=context.inputs["manifest"].storage,
        frames=context.inputs["frames"].storage,
        frames_pool=frames_pool(context.workspace, recipe).storage,
        estimator=None if estimator is None else estimator.storage.folder(MODEL),
    )


def _train(recipe: Recipe, context: StageContext, task: RetrievalTask | VideoQATask) -> dict[str, float]:
    from pipelines.train.loop import LoopSettings
    from pipelines.train.ray_trainer import train_on_ray

    training = task.training
    return train_on_ray(
        task,
        context,
        resources=getattr(recipe.resources, task.kind),
        settings=LoopSettings(
            checkpoint_every_steps=training.checkpoint.every_steps, log_every_steps=recipe.tracking.every_steps
        ),
        precision=training.precision,
    )
