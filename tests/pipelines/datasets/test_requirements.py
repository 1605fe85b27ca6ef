"""Data that cannot serve a recipe is refused as soon as there is a manifest, before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.datasets import requirements
from pipelines.datasets.answers import Vocabulary
from pipelines.recipe.data import DataConfig, Split
from pipelines.recipe.evaluation import EvaluationConfig, QAEvaluationConfig
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.probe import ProbeConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import EstimatorTrainingConfig, RetrievalTrainingConfig, VideoQATrainingConfig
from pipelines.run import run_plan
from pipelines.stages.execution import execute_step
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.records import MANIFEST, MANIFEST_FILE
from pipelines.workspace.storage import Storage

RETRIEVAL = ("frames", "retrieval", "evaluation")
ANSWERING = ("frames", "video_qa", "qa_evaluation")
QUESTIONS_ALONE = DataConfig(dataset="msrvtt_qa")


def recipe(**sections: Any) -> Recipe:
    """A batch of three in every training."""
    given = {
        "estimator": EstimatorTrainingConfig(batch_size=3),
        "retrieval": RetrievalTrainingConfig(batch_size=3),
        "video_qa": VideoQATrainingConfig(batch_size=3),
        **sections,
    }
    return Recipe(**given)


def require_data(
    recipe: Recipe, stages: Sequence[str], manifest: Storage, vocabulary: Vocabulary | None = None
) -> None:
    """As that of the module, of the manifest in a folder."""
    requirements.require_data(recipe, stages, manifest.read_table(MANIFEST_FILE), vocabulary)


def write_manifest(
    folder: Storage,
    captions: Mapping[Split, Sequence[int]] | None = None,
    questions: Mapping[Split, Sequence[Sequence[str]]] | None = None,
) -> None:
    """Numbers of captions of the videos of each split; answers to the questions about those of each split."""
    rows = [
        {"split": split, "captions": ["a caption"] * number, "questions": []}
        for split, numbers in (captions or {}).items()
        for number in numbers
    ]
    rows += [
        {
            "split": split,
            "captions": [],
            "questions": [{"question": "what", "answer": answer, "type": "what", "split": split} for answer in answers],
        }
        for split, videos in (questions or {}).items()
        for answers in videos
    ]
    table = [{"video_id": f"video{n}", "uri": "", "key": str(n), **row} for n, row in enumerate(rows)]
    folder.write_table(MANIFEST_FILE, pa.Table.from_pylist(table, schema=MANIFEST))


@pytest.fixture
def manifest(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "manifest"))


def test_data_that_suffice_are_taken(manifest: Storage) -> None:
    write_manifest(manifest, {"train": [1, 2, 1], "test": [1]})
    require_data(recipe(), RETRIEVAL, manifest)
    require_data(recipe(retrieval=RetrievalTrainingConfig(batch_size=64)), ("frames", "evaluation"), manifest)
    write_manifest(manifest, questions={"train": [["dog"], ["cat", "dog"], ["ant"]], "test": [["dog"]]})
    require_data(recipe(data=QUESTIONS_ALONE, tasks=("video_qa",)), ANSWERING, manifest)
    write_manifest(manifest, {"train": [0], "val": [1]})
    require_data(recipe(), ("frames", "labels"), manifest)


def test_fewer_training_videos_than_the_batch_are_refused(manifest: Storage) -> None:
    # Captions do not count: a video is in a batch once.
    write_manifest(manifest, {"train": [9, 9, 0], "val": [1], "test": [1]})
    with pytest.raises(
        ValueError,
        match=r"retrieval\.batch_size is 3, .* train has 2 videos with captions \(by split: train 2, val 1, ",
    ):
        require_data(recipe(), RETRIEVAL, manifest)
    require_data(recipe(retrieval=RetrievalTrainingConfig(batch_size=2)), RETRIEVAL, manifest)


def test_a_split_without_texts_is_refused_where_it_is_evaluated(manifest: Storage) -> None:
    write_manifest(manifest, {"train": [1, 1, 1], "test": [0]}, {"val": [["dog"]]})
    with pytest.raises(
        ValueError, match=r"evaluation\.split is test, and no video of that split has captions"
    ) as found:
        require_data(recipe(), RETRIEVAL, manifest)
    assert "retrieval.batch_size" not in str(found.value)
    require_data(recipe(evaluation=EvaluationConfig(split="train")), RETRIEVAL, manifest)
    with pytest.raises(ValueError, match=r"probe\.split is test, and no video of that split has captions"):
        require_data(recipe(), ("probe",), manifest)
    require_data(recipe(probe=ProbeConfig(split="train")), ("probe",), manifest)
    with pytest.raises(ValueError, match=r"qa_evaluation\.split is test, .* questions \(.*train 0, val 1, test 0\)"):
        require_data(recipe(), ("qa_evaluation",), manifest)
    require_data(recipe(qa_evaluation=QAEvaluationConfig(split="val")), ("qa_evaluation",), manifest)


def test_a_bank_of_training_captions_is_asked_for_where_a_method_needs_one(manifest: Storage) -> None:
    write_manifest(manifest, {"train": [0], "test": [1]})
    banked = recipe(evaluation=EvaluationConfig(post_processing=("dual_softmax", "qb_norm", "nnn")))
    with pytest.raises(ValueError, match=r"post_processing \[qb_norm, nnn\] needs a bank .* train 0, val 0, test 1"):
        require_data(banked, ("evaluation",), manifest)
    require_data(banked, ("zero_shot",), manifest)
    require_data(recipe(evaluation=EvaluationConfig(post_processing=("dual_softmax",))), ("evaluation",), manifest)


def test_all_of_it_is_said_at_once(manifest: Storage) -> None:
    write_manifest(manifest, {"val": [1]})
    with pytest.raises(ValueError, match="add captions") as found:
        require_data(recipe(), (*RETRIEVAL, "estimator"), manifest)
    for setting in ("estimator.batch_size", "retrieval.batch_size", "evaluation.split"):
        assert setting in str(found.value)


def test_pairs_of_the_estimator_are_texts(manifest: Storage) -> None:
    write_manifest(manifest, {"train": [3]})
    require_data(recipe(), ("estimator",), manifest)
    with pytest.raises(ValueError, match=r"estimator\.batch_size is 3 pairs, and the training videos have 1 captions"):
        require_data(recipe(labels=LabelsConfig(captions_per_video=1)), ("estimator",), manifest)
    untrained = EstimatorTrainingConfig(epochs=0, init_checkpoint="x", batch_size=64)
    require_data(recipe(estimator=untrained), ("estimator",), manifest)
    write_manifest(manifest, questions={"train": [["dog", "cat"]], "test": [["ant", "bee"]]})
    with pytest.raises(ValueError, match="have 2 questions"):
        require_data(recipe(data=QUESTIONS_ALONE, tasks=("video_qa",)), ("estimator",), manifest)


def test_a_vocabulary_without_answers_is_refused(manifest: Storage) -> None:
    write_manifest(manifest, questions={"train": [["dog", "cat"], ["dog"], ["ant"]], "test": [["dog"]]})
    answering = recipe(data=QUESTIONS_ALONE, tasks=("video_qa",))
    require_data(answering, ANSWERING, manifest, Vocabulary(["dog", "ant"]))
    for answers, number in ((["dog", "bee"], 2), (["bee", "fox"], 0)):
        with pytest.raises(
            ValueError, match=rf"has {number} videos with questions that the vocabulary has an answer to"
        ):
            require_data(answering, ANSWERING, manifest, Vocabulary(answers))


def test_a_run_over_a_finished_manifest_stops_before_ray_is_started(tmp_path: Path) -> None:
    def make_manifest(context: StageContext) -> Mapping[str, int]:
        write_manifest(context.output, {"train": [1, 1], "test": [1]})
        return {"rows": 3, "errors": 0}

    def decode(context: StageContext) -> Mapping[str, int]:
        raise AssertionError("nothing may be decoded")

    stages = [
        Stage(name="manifest", version=1, settings={}, inputs=(), run=make_manifest),
        Stage(name="frames", version=1, settings={}, inputs=("manifest",), run=decode),
        Stage(name="retrieval", version=1, settings={}, inputs=("frames",), run=decode),
    ]
    graph = Graph(Storage(str(tmp_path)), stages)
    (step,) = graph.plan(until_stage="manifest")
    execute_step(graph, step, tracker=StageTracker(), config=None)
    with pytest.raises(ValueError, match=r"retrieval\.batch_size is 3"):
        run_plan(graph, graph.plan(), recipe(workspace=str(tmp_path)))
