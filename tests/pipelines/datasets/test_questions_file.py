from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.annotations import Question, question_type
from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.datasets.questions_file import read_questions_file
from pipelines.datasets.record_files import MAX_LINE_CHARS
from pipelines.recipe.data import DataConfig

Record = dict[str, Any]
WriteQuestions = Callable[..., str]


@pytest.fixture
def write_questions(tmp_path: Path) -> WriteQuestions:
    """Writes the questions, and an empty file for each of ``videos``."""

    def write(records: Sequence[Record], *, videos: Sequence[str] = ("a.mp4", "b.mp4", "c d.mp4")) -> str:
        for video in videos:
            (tmp_path / video).touch()
        (tmp_path / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(tmp_path / "questions.jsonl")

    return write


@pytest.fixture
def captions(tmp_path: Path) -> str:
    """A data set of three training videos, one of them a segment, and a test video."""
    rows = [("a.mp4", "x", "train", "", ""), ("b.mp4", "y", "train", "", ""), ("b.mp4", "z", "train", "0", "2")]
    for name in ("a.mp4", "b.mp4", "c d.mp4"):
        (tmp_path / name).touch()
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        header = ["path", "caption", "split", "start_s", "end_s"]
        csv.writer(file).writerows([header, *rows, ("c d.mp4", "t", "test", "", "")])
    return str(tmp_path / "captions.csv")


def ask(video: str, question: str = "what is it", answer: str = "a dog", **more: Any) -> Record:
    return {"video": video, "question": question, "answer": answer, **more}


def rows_of(config: DataConfig) -> dict[str, Record]:
    return {row["uri"].rpartition("/")[2] + str(row["start_s"] or ""): row for row in manifest_rows(config)}


def manifest_rows(config: DataConfig) -> list[Record]:
    return build_manifest(config).table.to_pylist()  # type: ignore[no-any-return]


def test_questions_name_videos_of_the_data_set_by_id_or_path(
    write_questions: WriteQuestions, captions: str, tmp_path: Path
) -> None:
    config = DataConfig(dataset="captions_file", annotations=captions, validation_videos=0)
    ids = {row["uri"].rpartition("/")[2]: row["video_id"] for row in manifest_rows(config) if row["start_s"] is None}
    file = write_questions(
        [
            ask(ids["a.mp4"], "Where  is\nit ?", " in the garden "),
            ask("a.mp4", "is it red", "yes", type="color"),
            ask(f"{tmp_path}/c d.mp4", answer="a cat"),
        ]
    )
    rows = rows_of(DataConfig(dataset="captions_file", annotations=captions, questions=file, validation_videos=0))
    assert rows["a.mp4"]["questions"] == [
        {"question": "Where is it ?", "answer": "in the garden", "type": "where", "split": "train"},
        {"question": "is it red", "answer": "yes", "type": "color", "split": "train"},
    ]
    assert rows["c d.mp4"]["questions"] == [
        {"question": "what is it", "answer": "a cat", "type": "what", "split": "test"}
    ]
    assert rows["b.mp4"]["questions"] == []
    assert rows["a.mp4"]["captions"] == ["x"]


def test_a_csv_says_the_same(write_questions: WriteQuestions, tmp_path: Path) -> None:
    from_json = read_questions_file(write_questions([ask("a.mp4", "what, exactly", split="train")]))
    (tmp_path / "questions.csv").write_text('video,question,answer,split\na.mp4,"what, exactly",a dog,train\n')
    assert read_questions_file(str(tmp_path / "questions.csv")).videos == from_json.videos


def test_questions_alone_are_a_data_set(write_questions: WriteQuestions) -> None:
    file = write_questions(
        [ask("a.mp4", split="train"), ask("b.mp4", "who runs", split="test"), ask("a.mp4", "how", split="train")]
    )
    config = DataConfig(dataset="captions_file", questions=file, validation_videos=0)
    assert not config.has_captions
    first, second = manifest_rows(config)
    assert (first["split"], first["captions"]) == ("train", [])
    assert [(item["question"], item["type"]) for item in first["questions"]] == [("what is it", "what"), ("how", "how")]
    assert (second["split"], second["questions"][0]["split"]) == ("test", "test")
    assert first["video_id"].startswith("a-")


def test_without_splits_a_hash_of_the_file_decides(write_questions: WriteQuestions) -> None:
    names = [f"{number}.mp4" for number in range(40)]
    file = write_questions([ask(name, f"what {turn}") for turn in range(2) for name in names], videos=names)
    found = {row["uri"]: row for row in manifest_rows(DataConfig(dataset="captions_file", questions=file))}
    splits = [row["split"] for row in found.values()]
    # Of 40 files a tenth is tested with, give or take the hash; of the others at most a third validates.
    assert 1 <= splits.count("test") <= 10
    assert splits.count("val") == (40 - splits.count("test")) // 3
    assert all(item["split"] == row["split"] for row in found.values() for item in row["questions"])
    fewer = write_questions([ask(name) for name in names[:30]], videos=())
    tested = {row["uri"] for row in found.values() if row["split"] == "test"}
    rows = manifest_rows(DataConfig(dataset="captions_file", questions=fewer))
    still = tested & {row["uri"] for row in rows}
    tested_now = {row["uri"] for row in rows if row["split"] == "test"}
    # The hash is one of the folder, too: it may leave none of these for the test, and then there is one all the same.
    assert tested_now == still or (not still and len(tested_now) == 1)


def test_a_question_has_its_own_split_and_else_that_of_its_video(
    write_questions: WriteQuestions, captions: str
) -> None:
    file = write_questions([ask("a.mp4", split="test"), ask("c d.mp4")])
    rows = rows_of(DataConfig(dataset="captions_file", annotations=captions, questions=file, validation_videos=0))
    assert (rows["a.mp4"]["split"], rows["a.mp4"]["questions"][0]["split"]) == ("train", "test")
    assert rows["c d.mp4"]["questions"][0]["split"] == "test"


def test_carved_validation_videos_give_the_validation_questions(write_questions: WriteQuestions) -> None:
    names = [f"{number}.mp4" for number in range(12)]
    records = [ask(name, split="test" if name == "0.mp4" else "train") for name in names]
    config = DataConfig(dataset="captions_file", questions=write_questions(records, videos=names), validation_videos=3)
    rows = manifest_rows(config)
    assert sum(row["split"] == "val" for row in rows) == 3
    assert all(item["split"] == row["split"] for row in rows for item in row["questions"])
    # Where the data has validation questions, training questions stay what they are.
    records[5]["split"] = "val"
    rows = manifest_rows(DataConfig(dataset="captions_file", questions=write_questions(records), validation_videos=3))
    assert [row["uri"].rpartition("/")[2] for row in rows if row["split"] == "val"] == ["5.mp4"]


def test_repetitions_and_empty_texts_are_left_out_and_counted(write_questions: WriteQuestions) -> None:
    more = [ask("a.mp4", split="train"), ask("a.mp4", "", split="train"), ask("a.mp4", answer=" ", split="train")]
    annotations = read_questions_file(write_questions([ask("a.mp4", split="train", note="x"), *more]))
    assert annotations.videos[0].questions == [Question("what is it", "a dog", "what", "train")]
    warnings = "\n".join(annotations.warnings)
    assert "2 lines have an empty question or answer" in warnings
    assert "1 questions repeat" in warnings
    assert "no question has the split test" in warnings
    assert "1 unknown columns are ignored: note" in warnings


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What color is it", "what"),
        ("what's that", "what"),
        ("who’s there", "who"),
        ("where?", "where"),
        ("is it what", "other"),
        ("whatever", "other"),
        ("how many", "how"),
    ],
)
def test_the_first_word_gives_the_type(question: str, kind: str) -> None:
    assert question_type(question) == kind


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([ask("a.mp4", split="training")], "line 1: split 'training' is unknown"),
        ([ask("", split="test")], "line 1: video is empty"),
        ([ask("../a.mp4")], "line 1: path '../a.mp4' leaves the folder"),
        ([ask("nope://b/a.mp4")], "line 1: cannot open 'nope://b/a.mp4'"),
        ([ask("a.mp4", answer=["x"])], "line 1: answer is a list"),
        ([ask("a.mp4", type="overall")], "line 1: type 'overall' stands for all questions"),
        ([{"video": "a.mp4", "question": "x"}], "it needs video, question and answer"),
        ([ask("a.mp4", anwser="x")], "did you mean 'answer'"),
        ([ask("a.mp4", split="train"), ask("b.mp4")], "line 2: some lines name a split and others do not"),
        ([ask("a.mp4", split="train"), ask("a.mp4", "who", split="test")], "line 2: .* split test here and train on"),
        ([ask("a.mp4", "x" * MAX_LINE_CHARS)], "more than 1,000,000 characters"),
        ([], "holds no questions"),
    ],
)
def test_unusable_questions_are_refused_with_the_line_and_the_rule(
    write_questions: WriteQuestions, records: Sequence[Record], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions_file(write_questions(records))


def test_questions_about_other_videos_are_refused(write_questions: WriteQuestions, captions: str) -> None:
    file = write_questions([ask("a.mp4"), ask("other.mp4"), ask("b.mp4"), ask("c d.mp4"), ask("c d.mp4", "who")])
    config = DataConfig(dataset="captions_file", annotations=captions, questions=file)
    with pytest.raises(ValueError, match=r"line 2: video 'other.mp4' is neither (.|\n)*line 3: .* has 2 segments"):
        build_manifest(config)
    mixed = write_questions([ask("a.mp4"), ask("a.mp4", "who", split="test")])
    with pytest.raises(ValueError, match=r"line 2: .* split test here and train on line 1; .* trained on and tested"):
        build_manifest(DataConfig(dataset="captions_file", annotations=captions, questions=mixed))


def test_the_digest_follows_the_questions_and_their_videos(
    write_questions: WriteQuestions, captions: str, tmp_path: Path
) -> None:
    alone = DataConfig(dataset="captions_file", questions=write_questions([ask("a.mp4")]))
    beside = DataConfig(dataset="captions_file", annotations=captions, questions=alone.questions)
    before = manifest_digest(alone), manifest_digest(beside)
    assert before == (manifest_digest(alone), manifest_digest(beside))
    (tmp_path / "a.mp4").write_bytes(b"changed")
    touched = manifest_digest(alone), manifest_digest(beside)
    write_questions([ask("a.mp4", answer="a cat")], videos=())
    changed = manifest_digest(alone), manifest_digest(beside)
    assert len({before[0], touched[0], changed[0]}) == len({before[1], touched[1], changed[1]}) == 3


def test_captions_or_questions_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"needs a CSV or JSONL file of captions there, or one of questions in data"):
        build_manifest(DataConfig(dataset="captions_file"))
    with pytest.raises(FileNotFoundError):
        manifest_digest(DataConfig(dataset="captions_file", questions="/nowhere/questions.jsonl"))
