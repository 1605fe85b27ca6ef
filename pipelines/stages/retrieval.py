"""The stage ``retrieval``: the retrieval model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.models.folder import FRAMES_JSON, MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import videos_from
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.train.files import RETRIEVAL_METRICS
from pipelines.workspace.artifact import Counts, plain

if TYPE_CHECKING:
    pass
from pipelines.stages.training import progress_of_training, say_what_is_left_out, teacher_inputs, train, training_data


def retrieval_stage(recipe: Recipe) -> Stage:
    """Trains the retrieval model."""
    training = recipe.retrieval

    def run(context: StageContext) -> Counts:
        from pipelines.train.pairs import steps_of_epochs
        from pipelines.train.retrieval import RetrievalTask

        data = training_data(recipe, context)
        view = data.captions("train")
        say_what_is_left_out("retrieval", view)
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
        metrics = train(recipe, context, task, checkpoint=training.checkpoint, precision=training.precision)
        # The folder of the model then holds all that searching with it needs.
        model = context.output.folder(MODEL)
        if recipe.data.features is None:
            model.write_json(FRAMES_JSON, plain(recipe.frames))
            context.tracker.log_model(model)
        return {"rows": len(view), "errors": 0, **metrics}

    return Stage(
        name="retrieval",
        version=1,
        settings={**counting(training), "model": counting(recipe.model, "training"), "seed": recipe.seed},
        inputs=("manifest", videos_from(recipe, training.init_checkpoint), *teacher_inputs(recipe)),
        run=run,
        partial=progress_of_training,
        metrics=RETRIEVAL_METRICS,
    )
