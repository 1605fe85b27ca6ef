"""The stage ``answers``: the vocabulary that answers are chosen from, before any video is decoded."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
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
    generated, file = _generated(recipe), _file(recipe)
    settings: dict[str, Any] = {"size": answers.size or DEFAULT_SIZE}
    if generated:
        # The contents of a generated file count by the fingerprint of the stage that writes it.
        settings = {"file": ANSWER_LABELS_FILE}
    elif file is not None:
        settings = {"digest": content_digest(file)}

    def run(context: StageContext) -> Counts:
        manifest = context.inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["questions"])
        vocabulary = choose_vocabulary(recipe, manifest, context.inputs["shapes"].storage if generated else None)
        vocabulary.write(context.output)
        counts = coverage(_questions(manifest), vocabulary)
        for split in SPLITS:
            if total := counts.get(f"{split}_questions"):
                known = counts[f"{split}_answerable"]
                logger.info(
                    "answers: the vocabulary has the answers of %s of %s %s questions", f"{known:,}", total, split
                )
        return {"rows": len(vocabulary), "errors": 0, **counts}

    inputs = ("shapes", "manifest") if generated else ("manifest",)
    return Stage(name="answers", version=1, settings=settings, inputs=inputs, run=run)


def choose_vocabulary(recipe: Recipe, manifest: pa.Table, shapes: Storage | None = None) -> Vocabulary:
    """The answers to choose from: those of a file, of the data set, or the most frequent ones of training questions.

    Args:
        recipe: of the run.
        manifest: as ``records.MANIFEST``.
        shapes: the generated data set, where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a vocabulary, or there is no training question.
    """
    if (file := _file(recipe)) is not None:
        return read_vocabulary(file)
    if shapes is not None and _generated(recipe):
        return read_vocabulary(join_uri(shapes.uri, ANSWER_LABELS_FILE))
    trained = [question["answer"] for question in _questions(manifest) if question["split"] == "train"]
    if not trained:
        raise ValueError(
            "there is no training question to take answers from; give some questions the split train, or set "
            "video_qa.answers.file to a vocabulary"
        )
    return Vocabulary(most_frequent(trained, recipe.video_qa.answers.size or DEFAULT_SIZE))


def _questions(manifest: pa.Table) -> list[Any]:
    found: list[Any] = pc.list_flatten(manifest.column("questions")).to_pylist()
    return found


def _takes_own(recipe: Recipe) -> bool:
    """Whether the data set's own vocabulary is taken. The user's own questions have none."""
    answers = recipe.video_qa.answers
    return answers.file is None and answers.size is None and recipe.data.questions is None


def _generated(recipe: Recipe) -> bool:
    """Whether the vocabulary is generated with the data."""
    return _takes_own(recipe) and recipe.data.shapes is not None


def _file(recipe: Recipe) -> str | None:
    """The file of the vocabulary, if it exists before the data do."""
    if _takes_own(recipe):
        return None if recipe.data.shapes is not None else _own_file(recipe.data)
    return recipe.video_qa.answers.file


def _require_question_files(data: DataConfig) -> None:
    assert data.annotations is not None, "the manifest stage comes first and needs it"
    require_files(Storage(data.annotations), [QUESTION_FILES["train"], QUESTION_FILES["test"]], dataset="MSR-VTT-QA")


def _own_file(data: DataConfig) -> str | None:
    """The data set's own vocabulary, if it has one."""
    annotations = Storage(str(data.annotations))
    return join_uri(annotations.uri, ANSWER_LABELS_FILE) if annotations.exists(ANSWER_LABELS_FILE) else None
