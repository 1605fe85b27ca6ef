"""The stage ``retrieval``: the retrieval model."""

from __future__ import annotations

from pipelines.models.clip_weights import weights_folders
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import videos_from
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import progress_of_training, teacher_inputs, train_on_pairs, training_data
from pipelines.train.files import RETRIEVAL_METRICS
from pipelines.workspace.artifact import Counts


def retrieval_stage(recipe: Recipe) -> Stage:
    """Trains the retrieval model."""
    training = recipe.retrieval

    def run(context: StageContext) -> Counts:
        from pipelines.train.retrieval import RetrievalTask

        data = training_data(recipe, context)
        view = data.captions("train")
        metrics = train_on_pairs(
            recipe,
            context,
            RetrievalTask,
            view,
            data=data,
            max_texts=training.max_captions_per_video,
            chosen_by="the mean R@1 of both directions",
            validated=data.captions("val"),
            model_config=recipe.model,
        )
        return {"rows": len(view), "errors": 0, **metrics}

    return Stage(
        name="retrieval",
        version=1,
        settings={**counting(training), "model": counting(recipe.model, "training"), "seed": recipe.seed},
        inputs=("manifest", videos_from(recipe, training.init_checkpoint), *teacher_inputs(recipe)),
        run=run,
        partial=progress_of_training,
        metrics=RETRIEVAL_METRICS,
        keeps=weights_folders(recipe.model.clip) if training.init_checkpoint is None else (),
    )
