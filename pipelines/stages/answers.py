"""The stage ``answers``: the vocabulary that answers are chosen from, before any video is decoded."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow.compute as pc

from pipelines.datasets.answers import DEFAULT_SIZE, Vocabulary, coverage, most_frequent, read_vocabulary
from pipelines.datasets.msrvtt_qa import ANSWER_LABELS_FILE, QUESTION_FILES
from pipelines.datasets.published_files import require_files
from pipelines.recipe.data import SPLITS, DataConfig
from pipelines.recipe.recipe import Recipe
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts
from pipelines.workspace.contents import content_digest
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri

logger = logging.getLogger(__name__)


def answers_stage(recipe: Recipe) -> Stage:
    """Writes the vocabulary of answers, and counts the questions that it covers.

    Raises:
        FileNotFoundError: the data set's questions, or the file of the vocabulary, are not there.
        ValueError: the data cannot have questions.
    """
    recipe.require_questions()
    data, answers = recipe.data, recipe.video_qa.answers
    if data.questions is None and data.shapes is None:
        _require_question_files(data)
    # There is no published vocabulary for the user's own questions or for a size that the user asks for.
    takes_own = answers.file is None and answers.size is None and data.questions is None
    generated = takes_own and data.shapes is not None
    file = _own_file(data) if takes_own and not generated else answers.file
    size = answers.size or DEFAULT_SIZE
    settings: dict[str, Any] = {"size": size}
    if generated:
        settings = {"file": ANSWER_LABELS_FILE}
    elif file is not None:
        settings = {"digest": content_digest(file)}

    def run(context: StageContext) -> Counts:
        manifest = context.inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["questions"])
        questions = pc.list_flatten(manifest.column("questions")).to_pylist()
        trained = [question["answer"] for question in questions if question["split"] == "train"]
        if file is not None:
            vocabulary = read_vocabulary(file)
        elif generated:
            vocabulary = read_vocabulary(join_uri(context.inputs["shapes"].storage.uri, ANSWER_LABELS_FILE))
        elif trained:
            vocabulary = Vocabulary(most_frequent(trained, size))
        else:
            raise ValueError(
                "there is no training question to take answers from; give some questions the split train, or set "
                "video_qa.answers.file to a vocabulary"
            )
        vocabulary.write(context.output)
        counts = coverage(questions, vocabulary)
        for split in SPLITS:
            if total := counts.get(f"{split}_questions"):
                known = counts[f"{split}_answerable"]
                logger.info(
                    "answers: the vocabulary has the answers of %s of %s %s questions", f"{known:,}", total, split
                )
        return {"rows": len(vocabulary), "errors": 0, **counts}

    inputs = ("shapes", "manifest") if generated else ("manifest",)
    return Stage(name="answers", version=1, settings=settings, inputs=inputs, run=run)


def _require_question_files(data: DataConfig) -> None:
    assert data.annotations is not None, "the manifest stage comes first and needs it"
    require_files(Storage(data.annotations), [QUESTION_FILES["train"], QUESTION_FILES["test"]], dataset="MSR-VTT-QA")


def _own_file(data: DataConfig) -> str | None:
    """The data set's own vocabulary, if it has one."""
    annotations = Storage(str(data.annotations))
    return join_uri(annotations.uri, ANSWER_LABELS_FILE) if annotations.exists(ANSWER_LABELS_FILE) else None
