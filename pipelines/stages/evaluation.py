"""The stage ``evaluation``, of the model just trained or of any checkpoint."""

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

    # A given checkpoint encodes the frames itself, because stored features are those of the recipe's encoder. Where
    # another model made the features, there are no frames.
    inputs: tuple[str, ...] = ("manifest", "frames" if recipe.data.features is None else FEATURES)
    settings: dict[str, Any] = {**counting(recipe.evaluation), "seed": recipe.seed}
    if checkpoint is not None:
        settings |= given_model(checkpoint, recipe.model)
    if checkpoint is None:
        inputs = ("manifest", videos_from(recipe, recipe.retrieval.init_checkpoint), "retrieval")
    reads = {} if checkpoint is None else {"the checkpoint of evaluation": checkpoint}
    return Stage(name="evaluation", version=3, settings=settings, inputs=inputs, run=run, reads=reads)


def evaluate_checkpoint(recipe: Recipe, context: StageContext, checkpoint: str) -> Counts:
    """Evaluates ``checkpoint`` on the recipe's split."""
    from pipelines.datasets.protocols import named_protocol
    from pipelines.evaluate.retrieval import evaluate_retrieval
    from pipelines.splits import SplitView

    manifest, stored = context.inputs["manifest"].storage, stored_videos(recipe, context)
    view = SplitView(manifest, **stored, split=recipe.evaluation.split)
    say_what_is_left_out("evaluation", view)
    corrected: dict[str, Any] = {}
    if recipe.evaluation.post_processing:
        from pipelines.evaluate.variants import training_bank

        validation = SplitView(manifest, **stored, split="val")
        corrected["validation"] = validation if len(validation) else None
        if recipe.evaluation.bank_methods:
            trained = SplitView(manifest, **stored, split="train")
            corrected["bank"] = training_bank(trained, recipe.evaluation.bank_captions)
    metrics = evaluate_retrieval(
        context.output,
        context.tracker,
        view,
        checkpoint=checkpoint,
        config=recipe.model,
        settings=recipe.evaluation,
        resources=recipe.resources.evaluation,
        seed=recipe.seed,
        dataset=recipe.data.name,
        missing_videos=int(context.inputs["manifest"].counts.get(f"missing_{recipe.evaluation.split}", 0)),
        named=named_protocol(recipe.data, recipe.evaluation.split),
        **corrected,
    )
    return {"rows": len(view), "errors": 0, **metrics}
