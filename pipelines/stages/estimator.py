"""The stage ``estimator``: the network that imitates the labels."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.labels import labels_pool
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import progress_of_training, train
from pipelines.train.files import ESTIMATOR_METRICS
from pipelines.workspace.artifact import Counts


def estimator_stage(recipe: Recipe) -> Stage:
    """Trains the estimator on the labels, or uses a given one unchanged."""
    training = recipe.estimator

    def take(context: StageContext) -> Counts:
        from pipelines.models.estimator import EstimatorConfig, make_estimator
        from pipelines.models.weights import save_model

        channels = recipe.model.game.estimator_channels
        with TemporaryDirectory() as scratch:
            model = make_estimator(channels, training.init_checkpoint)
            save_model(Path(scratch), model, kind="estimator", config=EstimatorConfig(channels))
            context.output.upload(Path(scratch), MODEL)
        return {"rows": 0, "errors": 0}

    def run(context: StageContext) -> Counts:
        from pipelines.train.estimator import EstimatorTask

        labels = context.inputs["labels"]
        # The data were checked before, but not which videos can be decoded.
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
        metrics = train(recipe, context, task, checkpoint=training.checkpoint, precision="float32")
        return {"rows": pairs, "errors": 0, **metrics}

    return Stage(
        name="estimator",
        version=1,
        settings={**counting(training), "channels": recipe.model.game.estimator_channels, "seed": recipe.seed},
        inputs=("labels",) if training.epochs else (),
        run=run if training.epochs else take,
        partial=progress_of_training,
        metrics=ESTIMATOR_METRICS,
    )
