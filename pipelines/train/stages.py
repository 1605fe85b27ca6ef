"""The training stages: ``estimator`` and ``retrieval``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_pool
from pipelines.data.labels_stage import labels_pool
from pipelines.stages import Artifact, Counts, Stage, StageContext, plain
from pipelines.storage import Storage
from pipelines.train.layout import HISTORY, MODEL


def _progress(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
    """How far an interrupted training came; it goes on from its last checkpoint before that step."""
    if not output.exists(HISTORY):
        return None
    last = json.loads(output.read_bytes(HISTORY).splitlines()[-1])
    return f"stopped at step {last['step']:,}"


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
    )


def retrieval_stage(recipe: Recipe) -> Stage:
    """Trains the retrieval model."""
    training = recipe.retrieval
    taught = recipe.model.game.teacher == "estimator"

    def run(context: StageContext) -> Counts:
        from pipelines.data.splits import SplitView
        from pipelines.train.loop import LoopSettings
        from pipelines.train.ray_trainer import train_on_ray
        from pipelines.train.retrieval import RetrievalTask
        from pipelines.train.sampling import epoch_batches

        pool = frames_pool(context.workspace, recipe).storage
        manifest, frames = context.inputs["manifest"].storage, context.inputs["frames"].storage
        view = SplitView(manifest, frames, pool, "train")
        steps = [
            len(
                epoch_batches(
                    view.captions_per_video,
                    batch_size=training.batch_size,
                    seed=recipe.seed,
                    epoch=epoch,
                    max_captions=training.max_captions_per_video,
                )
            )
            for epoch in range(training.epochs)
        ]
        task = RetrievalTask(
            model_config=recipe.model,
            training=training,
            seed=recipe.seed,
            manifest=manifest,
            frames=frames,
            frames_pool=pool,
            estimator=context.inputs["estimator"].storage.folder(MODEL) if taught else None,
            loader_processes=recipe.resources.retrieval.loader_processes,
            steps_per_epoch=steps,
        )
        metrics = train_on_ray(
            task,
            context,
            resources=recipe.resources.retrieval,
            settings=LoopSettings(
                checkpoint_every_steps=training.checkpoint.every_steps, log_every_steps=recipe.tracking.every_steps
            ),
            precision=training.precision,
        )
        context.tracker.log_model(context.output.folder(MODEL))
        return {"rows": len(view), "errors": 0, **metrics}

    settings = plain(training)
    del settings["checkpoint"]
    return Stage(
        name="retrieval",
        version=1,
        settings={**settings, "model": plain(recipe.model), "seed": recipe.seed},
        inputs=("manifest", "frames", "estimator") if taught else ("manifest", "frames"),
        run=run,
        partial=_progress,
    )
