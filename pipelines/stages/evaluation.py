"""The stages ``evaluation`` and ``qa_evaluation``, of the model just trained or of any checkpoint."""

from __future__ import annotations

from typing import Any

from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import FEATURES, stored_videos, videos_from
from pipelines.stages.settings import counting, given_model
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import say_what_is_left_out
from pipelines.workspace.artifact import Counts


def evaluation_stage(recipe: Recipe, checkpoint: str | None = None) -> Stage:
    """Evaluates the model that the recipe trains, or ``checkpoint`` without training.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """

    def run(context: StageContext) -> Counts:
        if checkpoint is not None:
            return evaluate_checkpoint(recipe, context, checkpoint)
        return evaluate_checkpoint(recipe, context, context.inputs["retrieval"].storage.folder(MODEL).uri)

    inputs: tuple[str, ...] = ("manifest", "frames" if recipe.data.features is None else FEATURES)
    settings: dict[str, Any] = {**counting(recipe.evaluation), "seed": recipe.seed}
    if checkpoint is not None:
        settings |= given_model(checkpoint, recipe.model)
    if checkpoint is None:
        inputs = ("manifest", videos_from(recipe, recipe.retrieval.init_checkpoint), "retrieval")
    reads = {} if checkpoint is None else {"the checkpoint of evaluation": checkpoint}
    return Stage(name="evaluation", version=2, settings=settings, inputs=inputs, run=run, reads=reads)


def evaluate_checkpoint(recipe: Recipe, context: StageContext, checkpoint: str) -> Counts:
    """Evaluates ``checkpoint`` on the recipe's split."""
    from pipelines.evaluate.retrieval import evaluate_retrieval
    from pipelines.splits import SplitView

    manifest = context.inputs["manifest"].storage
    view = SplitView(manifest, **stored_videos(recipe, context), split=recipe.evaluation.split)
    say_what_is_left_out("evaluation", view)
    metrics = evaluate_retrieval(
        context.output,
        context.tracker,
        view,
        checkpoint=checkpoint,
        config=recipe.model,
        settings=recipe.evaluation,
        resources=recipe.resources.evaluation,
        seed=recipe.seed,
    )
    return {"rows": len(view), "errors": 0, **metrics}
