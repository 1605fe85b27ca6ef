"""The stage ``qa_evaluation``, of the model just trained or of any checkpoint."""

from __future__ import annotations

from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import answering_checkpoint, stored_videos, videos_from
from pipelines.stages.settings import counting, given_model
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import say_what_is_left_out
from pipelines.workspace.artifact import Counts


def qa_evaluation_stage(recipe: Recipe, checkpoint: str | None = None) -> Stage:
    """Evaluates the question answering model that the recipe trains, or ``checkpoint`` without training.

    The vocabulary comes from the stage ``answers``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """

    def run(context: StageContext) -> Counts:
        if checkpoint is not None:
            return evaluate_qa_checkpoint(recipe, context, checkpoint)
        return evaluate_qa_checkpoint(recipe, context, context.inputs["video_qa"].storage.folder(MODEL).uri)

    settings = {**counting(recipe.qa_evaluation), "seed": recipe.seed}
    inputs = ["manifest", "frames", "answers"]
    if checkpoint is None:
        inputs = ["manifest", videos_from(recipe, answering_checkpoint(recipe)), "answers", "video_qa"]
    else:
        # The number of answers does not matter here, because the vocabulary is an input.
        settings |= given_model(checkpoint, recipe.video_qa_model(2))
    reads = {} if checkpoint is None else {"the checkpoint of qa_evaluation": checkpoint}
    return Stage(name="qa_evaluation", version=2, settings=settings, inputs=tuple(inputs), run=run, reads=reads)


def evaluate_qa_checkpoint(recipe: Recipe, context: StageContext, checkpoint: str) -> Counts:
    """Evaluates ``checkpoint`` on the recipe's questions."""
    from pipelines.datasets.answers import Vocabulary
    from pipelines.evaluate.video_qa import evaluate_video_qa
    from pipelines.splits import QuestionView

    manifest, stored = context.inputs["manifest"].storage, stored_videos(recipe, context)
    vocabulary = Vocabulary.read(context.inputs["answers"].storage)
    view = QuestionView(manifest, **stored, split=recipe.qa_evaluation.split)
    say_what_is_left_out("qa_evaluation", view)
    trained = QuestionView(manifest, **stored, split="train")
    metrics = evaluate_video_qa(
        context.output,
        context.tracker,
        view,
        # Two baselines answer from the training questions, without a video.
        trained=[question for video in range(len(trained)) for question in trained.questions(video)],
        vocabulary=vocabulary,
        checkpoint=checkpoint,
        config=recipe.video_qa_model(len(vocabulary)),
        settings=recipe.qa_evaluation,
        resources=recipe.resources.qa_evaluation,
        seed=recipe.seed,
        dataset=recipe.data.name,
        missing_videos=int(context.inputs["manifest"].counts.get(f"missing_{recipe.qa_evaluation.split}", 0)),
    )
    return {"rows": sum(view.texts_per_video), "errors": 0, **metrics}
