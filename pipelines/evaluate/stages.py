"""The stages ``evaluation`` and ``qa_evaluation``, of the model just trained or of any checkpoint."""

from __future__ import annotations

from typing import Any

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_pool
from pipelines.stages import Counts, Stage, StageContext, plain
from pipelines.train.layout import MODEL


def evaluation_stage(recipe: Recipe, checkpoint: str | None = None) -> Stage:
    """Evaluates the model that the recipe trains, or ``checkpoint`` without training.

    A checkpoint is known by its address: one that was overwritten needs ``force``.
    """

    def run(context: StageContext) -> Counts:
        if checkpoint is not None:
            return evaluate_checkpoint(recipe, context, checkpoint)
        return evaluate_checkpoint(recipe, context, context.inputs["retrieval"].storage.folder(MODEL).uri)

    settings: dict[str, Any] = {
        "split": recipe.evaluation.split,
        "level_rates": recipe.evaluation.level_rates,
        "bootstrap_samples": recipe.evaluation.bootstrap_samples,
        "seed": recipe.seed,
    }
    if checkpoint is not None:
        settings |= {"checkpoint": checkpoint, "model": plain(recipe.model)}
    inputs = ("manifest", "frames") if checkpoint is not None else ("manifest", "frames", "retrieval")
    return Stage(name="evaluation", version=2, settings=settings, inputs=inputs, run=run)


def evaluate_checkpoint(recipe: Recipe, context: StageContext, checkpoint: str) -> Counts:
    """Evaluates ``checkpoint`` on the recipe's split."""
    from pipelines.data.splits import SplitView
    from pipelines.evaluate.retrieval import evaluate_retrieval

    pool = frames_pool(context.workspace, recipe).storage
    manifest, frames = context.inputs["manifest"].storage, context.inputs["frames"].storage
    view = SplitView(manifest, frames, pool, recipe.evaluation.split)
    metrics = evaluate_retrieval(
        context,
        view,
        checkpoint=checkpoint,
        config=recipe.model,
        settings=recipe.evaluation,
        resources=recipe.resources.evaluation,
        seed=recipe.seed,
    )
    return {"rows": len(view), "errors": 0, **metrics}


def qa_evaluation_stage(recipe: Recipe, checkpoint: str | None = None) -> Stage:
    """Evaluates the question answering model that the recipe trains, or ``checkpoint`` without training.

    The vocabulary is the stage ``answers``'s. A checkpoint is known by its address: one that was
    overwritten needs ``force``.
    """

    def run(context: StageContext) -> Counts:
        if checkpoint is not None:
            return evaluate_qa_checkpoint(recipe, context, checkpoint)
        return evaluate_qa_checkpoint(recipe, context, context.inputs["video_qa"].storage.folder(MODEL).uri)

    settings = plain(recipe.qa_evaluation)
    del settings["batch_size"]
    settings["seed"] = recipe.seed
    inputs = ["manifest", "frames", "answers"]
    if checkpoint is None:
        inputs.append("video_qa")
    else:
        # Any number of answers: the vocabulary is an input.
        settings |= {"checkpoint": checkpoint, "model": plain(recipe.video_qa_model(2))}
    return Stage(name="qa_evaluation", version=1, settings=settings, inputs=tuple(inputs), run=run)


def evaluate_qa_checkpoint(recipe: Recipe, context: StageContext, checkpoint: str) -> Counts:
    """Evaluates ``checkpoint`` on the recipe's questions."""
    from pipelines.data.answers import Vocabulary
    from pipelines.data.splits import QuestionView
    from pipelines.evaluate.video_qa import evaluate_video_qa

    pool = frames_pool(context.workspace, recipe).storage
    manifest, frames = context.inputs["manifest"].storage, context.inputs["frames"].storage
    vocabulary = Vocabulary.read(context.inputs["answers"].storage)
    view = QuestionView(manifest, frames, pool, recipe.qa_evaluation.split)
    trained = QuestionView(manifest, frames, pool, "train")
    metrics = evaluate_video_qa(
        context,
        view,
        trained=[question for video in range(len(trained)) for question in trained.questions(video)],
        vocabulary=vocabulary,
        checkpoint=checkpoint,
        config=recipe.video_qa_model(len(vocabulary)),
        settings=recipe.qa_evaluation,
        resources=recipe.resources.qa_evaluation,
        seed=recipe.seed,
    )
    return {"rows": sum(view.texts_per_video), "errors": 0, **metrics}
