from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.answers import ANSWERS_JSON, Vocabulary, coverage, most_frequent, read_vocabulary
from pipelines.recipe.data import DataConfig
from pipelines.recipe.recipe import Recipe
from pipelines.stages.answers import answers_stage
from pipelines.stages.stage import StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import MANIFEST, MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.recipe_options import recipe_with

QUESTIONS = {
    "train": ["dog", "cat", "dog", "Dog", "cat", "ant", "bee"],
    "val": ["dog", "fox"],
    "test": ["cat", "fox", "ant"],
}


@given(st.lists(st.sampled_from("abcde")), st.integers(1, 6))
def test_the_most_frequent_answers_come_first_and_ties_in_alphabetical_order(answers: list[str], size: int) -> None:
    found, counts = most_frequent(answers, size), Counter(answers)
    assert len(found) == min(size, len(counts))
    for earlier, later in pairwise(found):
        assert (-counts[earlier], earlier) < (-counts[later], later)
    assert all(counts[left_out] <= counts[found[-1]] for left_out in counts.keys() - set(found))


def test_answers_are_taken_as_they_are_but_for_outer_spaces() -> None:
    vocabulary = Vocabulary(["dog ", "Dog", "hot dog"])
    assert [vocabulary.label(answer) for answer in ("dog", "Dog", "hot dog", "DOG", "")] == [0, 1, 2, -1, -1]
    assert ("Dog" in vocabulary, "cat" in vocabulary, len(vocabulary)) == (True, False, 3)


@pytest.mark.parametrize("document", [["dog", "Dog", "cat"], {"cat": 2, "dog": 0, "Dog": 1}], ids=["list", "class ids"])
def test_a_vocabulary_is_read_in_the_order_of_its_classes(tmp_path: Path, document: Any) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(document))
    vocabulary = read_vocabulary(str(tmp_path / "answers.json"))
    assert vocabulary.answers == ("dog", "Dog", "cat")
    vocabulary.write(Storage(str(tmp_path / "copy")))
    assert Vocabulary.read(Storage(str(tmp_path / "copy"))).answers == vocabulary.answers
    assert json.loads((tmp_path / "copy" / ANSWERS_JSON).read_text()) == ["dog", "Dog", "cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "b": 2}', "its 2 answers have the class ids 0 to 2; they must be 0 to 1"),
        ('{"a": 1, "b": 1}', "class ids 1 to 1"),
        ('{"a": 0, "b": true}', "must hold an object from answer to class id"),
        ('{"a": "0", "b": "1"}', "must hold an object"),
        ('["a", 1]', "must hold an object"),
        ('["a"]', "a vocabulary of 1 answers leaves nothing to choose"),
        ('["a", "b", "a "]', "'a' has more than one class"),
        ('["a", " "]', "the answer of class 1 is empty"),
        ("{", "is not an answer vocabulary"),
        ("[" * 100_000, "is not an answer vocabulary"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(str(tmp_path / "answers.json"))


def test_coverage_counts_questions_by_split() -> None:
    questions = [{"split": split, "answer": answer} for split, answers in QUESTIONS.items() for answer in answers]
    assert coverage(questions, Vocabulary(["dog", "cat"])) == {
        "train_questions": 7,
        "train_answerable": 4,
        "val_questions": 2,
        "val_answerable": 1,
        "test_questions": 3,
        "test_answerable": 1,
    }


@pytest.fixture
def msrvtt_qa(tmp_path: Path) -> Path:
    """The published question files; the videos are empty."""
    for split, answers in QUESTIONS.items():
        lines = [
            {"question": "what", "answer": answer, "answer_type": "what", "video_id": f"{split}{number}"}
            for number, answer in enumerate(answers)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            (tmp_path / f"{line['video_id']}.mp4").touch()
    return tmp_path


def recipe_for(folder: Path, *options: str, dataset: str = "msrvtt_qa") -> Recipe:
    data = {"dataset": dataset, "annotations": str(folder), "videos": str(folder)}
    return recipe_with({"workspace": str(folder / "workspace"), "tasks": ["video_qa"], "data": data}, *options)


def make_vocabulary(
    recipe: Recipe, folder: Path, questions: Mapping[str, Sequence[str]] = QUESTIONS
) -> tuple[list[str], dict[str, Any]]:
    """The answers and the counts that the stage leaves for questions with these answers."""
    manifest = Storage(str(folder / "manifest"))
    rows = [
        {
            "video_id": f"{split}{number}",
            "uri": "",
            "key": "",
            "split": split,
            "captions": [],
            "questions": [{"question": "what", "answer": answer, "type": "what", "split": split}],
        }
        for split, answers in questions.items()
        for number, answer in enumerate(answers)
    ]
    manifest.write_table(MANIFEST_FILE, pa.Table.from_pylist(rows, schema=MANIFEST))
    output = Storage(str(folder / "answers"))
    inputs = {"manifest": Artifact("manifest", "0", manifest, {})}
    counts = answers_stage(recipe).run(StageContext(Storage(recipe.workspace), output, inputs, StageTracker()))
    return output.read_json(ANSWERS_JSON), dict(counts)


def test_the_data_sets_own_vocabulary_is_taken(msrvtt_qa: Path) -> None:
    (msrvtt_qa / "train_ans2label.json").write_text('{"ant": 1, "dog": 0}')
    answers, counts = make_vocabulary(recipe_for(msrvtt_qa), msrvtt_qa)
    assert answers == ["dog", "ant"]
    assert (counts["rows"], counts["errors"], counts["train_answerable"], counts["test_answerable"]) == (2, 0, 3, 1)


def test_without_one_the_most_frequent_training_answers_are_taken(msrvtt_qa: Path) -> None:
    assert make_vocabulary(recipe_for(msrvtt_qa), msrvtt_qa)[0] == ["cat", "dog", "Dog", "ant", "bee"]
    (msrvtt_qa / "train_ans2label.json").write_text('{"ant": 1, "dog": 0}')
    recipe = recipe_for(msrvtt_qa, "--video_qa.answers.size", "3")
    assert make_vocabulary(recipe, msrvtt_qa)[0] == ["cat", "dog", "Dog"]


def test_a_file_can_be_given(msrvtt_qa: Path) -> None:
    (msrvtt_qa / "mine.json").write_text('["bee", "fox"]')
    answers, counts = make_vocabulary(
        recipe_for(msrvtt_qa, "--video_qa.answers.file", str(msrvtt_qa / "mine.json")), msrvtt_qa
    )
    assert (answers, counts["test_answerable"]) == (["bee", "fox"], 1)


def test_the_stage_is_known_by_the_content_of_the_vocabulary(msrvtt_qa: Path) -> None:
    stages = [answers_stage(recipe_for(msrvtt_qa))]
    for content in ('["a", "b"]', '["a", "b"]', '["b", "a"]'):
        (msrvtt_qa / "train_ans2label.json").write_text(content)
        stages.append(answers_stage(recipe_for(msrvtt_qa)))
    none, first, same, other = (json.dumps(dict(stage.settings)) for stage in stages)
    assert first == same
    assert len({none, first, other}) == 3


def test_missing_questions_are_found_before_anything_runs(msrvtt_qa: Path) -> None:
    (msrvtt_qa / "train.jsonl").unlink()
    for dataset in ("msrvtt", "msrvtt_qa"):
        with pytest.raises(FileNotFoundError, match=r"lacks train\.jsonl"):
            answers_stage(recipe_for(msrvtt_qa, dataset=dataset))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        answers_stage(recipe_for(msrvtt_qa, "--data.questions", "q.jsonl", "--video_qa.answers.file", "nowhere.json"))
    with pytest.raises(ValueError, match="captions_file has no questions"):
        answers_stage(Recipe(data=DataConfig(dataset="captions_file")))


def test_without_training_questions_there_are_no_answers(msrvtt_qa: Path) -> None:
    with pytest.raises(ValueError, match=r"no training question .*video_qa\.answers\.file"):
        make_vocabulary(recipe_for(msrvtt_qa), msrvtt_qa, {"test": ["dog", "cat"]})
