"""The stage ``video_qa``: the question answering model."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.models.clip_weights import weights_folders
from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import answering_checkpoint, videos_from
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.training import progress_of_training, teacher_inputs, train_on_pairs, training_data
from pipelines.train.files import VIDEO_QA_METRICS
from pipelines.workspace.artifact import Counts
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)


def video_qa_stage(recipe: Recipe) -> Stage:
    """Trains the question answering model."""
    training = recipe.video_qa

    def run(context: StageContext) -> Counts:
        from pipelines.datasets.answers import Vocabulary
        from pipelines.train.video_qa import VideoQATask

        data = training_data(recipe, context)
        vocabulary = Vocabulary.read(context.inputs["answers"].storage)
        view = data.questions("train", answerable_by=vocabulary)
        asked = sum(data.questions("train").texts_per_video)
        kept = sum(view.texts_per_video)
        if kept < asked:
            logger.info(
                "video_qa: %s of %s training questions have an answer outside the vocabulary, and are left out",
                asked - kept,
                asked,
            )
        metrics = train_on_pairs(
            recipe,
            context,
            VideoQATask,
            view,
            data=data,
            max_texts=training.max_questions_per_video,
            complete=vocabulary.write,
            chosen_by="the accuracy",
            validated=data.questions("val"),
            model_config=recipe.video_qa_model(len(vocabulary)),
            vocabulary=vocabulary,
            init_checkpoint=_start(recipe, context),
        )
        return {"rows": kept, "errors": 0, "videos": len(view), "left_out": asked - kept, **metrics}

    return Stage(
        name="video_qa",
        version=1,
        settings={
            **counting(training, "training"),
            "model": counting(recipe.model, "answering"),
            "seed": recipe.seed,
        },
        inputs=(
            *("manifest", videos_from(recipe, answering_checkpoint(recipe)), "answers"),
            *teacher_inputs(recipe),
            *(("retrieval",) if training.from_retrieval else ()),
        ),
        run=run,
        partial=progress_of_training,
        metrics=VIDEO_QA_METRICS,
        keeps=() if training.init_checkpoint or training.from_retrieval else weights_folders(recipe.model.clip),
    )


def _start(recipe: Recipe, context: StageContext) -> str | None:
    """The checkpoint from which question answering starts; logs which part of it is used."""
    from pipelines.models.initial_weights import checkpoint_kind

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
