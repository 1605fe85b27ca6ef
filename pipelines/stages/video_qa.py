"""The stage ``video_qa``: the question answering model."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.models.folder import FRAMES_JSON, MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import answering_checkpoint, videos_from
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.train.files import VIDEO_QA_METRICS
from pipelines.workspace.artifact import Counts, plain
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    pass
from pipelines.stages.training import progress_of_training, say_what_is_left_out, teacher_inputs, train, training_data

logger = logging.getLogger(__name__)


def video_qa_stage(recipe: Recipe) -> Stage:
    """Trains the question answering model."""
    training = recipe.video_qa

    def run(context: StageContext) -> Counts:
        from pipelines.datasets.answers import Vocabulary
        from pipelines.train.pairs import steps_of_epochs
        from pipelines.train.video_qa import VideoQATask

        data = training_data(recipe, context)
        vocabulary = Vocabulary.read(context.inputs["answers"].storage)
        view = data.questions("train", answerable_by=vocabulary)
        say_what_is_left_out("video_qa", view)
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
        metrics = train(recipe, context, task, checkpoint=training.checkpoint, precision=training.precision)
        # The folder of the model then holds all that answering a question about a video file needs.
        model = context.output.folder(MODEL)
        vocabulary.write(model)
        model.write_json(FRAMES_JSON, plain(recipe.frames))
        context.tracker.log_model(model)
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
    )


def _start(recipe: Recipe, context: StageContext) -> str | None:
    """The checkpoint from which question answering starts; says what of it is used."""
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
