"""What all annotation files share: missing values are missing in every format, and nothing hides a part of a file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.answers import read_vocabulary
from pipelines.datasets.manifest import build_manifest
from pipelines.datasets.record_files import parse_json, published_format, read_records
from pipelines.recipe.data import DataConfig
from tests.dataset_copies import write_activitynet, write_didemo, write_msrvtt, write_msrvtt_qa, write_msvd

Row = dict[str, Any]
MISSING = [None, float("nan")]
BOTH = pytest.mark.parametrize("missing", MISSING, ids=["null", "NaN"])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b", "c", *(f"video{number}" for number in range(4))):
        (folder / f"{name}.mp4").touch()
    return folder


def rows_of(videos: Path, dataset: Any, **more: Any) -> tuple[dict[str, Row], str]:
    """The manifest's rows by id, and its warnings."""
    config = DataConfig(dataset=dataset, videos=str(videos), validation_videos=0, **more)
    manifest = build_manifest(config)
    return {row["video_id"]: row for row in manifest.table.to_pylist()}, "\n".join(manifest.warnings)


def words_of(rows: dict[str, Row]) -> str:
    """All texts of a manifest."""
    return json.dumps([[row["captions"], row["questions"]] for row in rows.values()])


@BOTH
@pytest.mark.parametrize("column", ["caption", "split", "video_id", "start_s", "end_s"])
def test_a_missing_value_of_the_users_own_file_is_none(videos: Path, missing: Any, column: str) -> None:
    records = [{"path": f"{name}.mp4", "caption": name, "split": "train", "video_id": name} for name in "ab"]
    for record in records:
        record[column] = missing
    records.append({"path": "c.mp4", "caption": "c", **({} if column == "split" else {"split": "test"})})
    (videos / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, warnings = rows_of(videos, "captions_file", annotations=str(videos / "own.jsonl"))
    texts = [row["captions"] for row in rows.values()]
    assert texts == ([["c"]] if column == "caption" else [["a"], ["b"], ["c"]])
    assert {row["start_s"] for row in rows.values()} == {row["end_s"] for row in rows.values()} == {None}
    assert not {"None", "nan"} & rows.keys()
    assert ("2 lines have an empty caption" in warnings) == (column == "caption")


@BOTH
@pytest.mark.parametrize("column", ["question", "answer", "type", "split"])
def test_a_missing_value_of_the_users_own_questions_is_none(videos: Path, missing: Any, column: str) -> None:
    record = {"video": "a.mp4", "question": "who is it", "answer": "a dog", "type": "kind", "split": "test"}
    lines = [record, {**record, "video": "b.mp4", **({} if column == "split" else {column: missing})}]
    if column == "split":
        lines = [{**line, "split": missing} for line in lines]
    (videos / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, warnings = rows_of(videos, "captions_file", questions=str(videos / "own.jsonl"))
    asked = [item for row in rows.values() for item in row["questions"]]
    assert len(asked) == (1 if column in ("question", "answer") else 2)
    assert ("1 lines have an empty question or answer" in warnings) == (column in ("question", "answer"))
    assert [item["type"] for item in asked] == (["kind", "who"] if column == "type" else ["kind"] * len(asked))


@BOTH
def test_a_missing_caption_of_msrvtt_is_left_out_and_counted(videos: Path, tmp_path: Path, missing: Any) -> None:
    write_msrvtt(tmp_path / "set", train={"video0": ["one", "two"]}, test={"video1": "three"})
    file = tmp_path / "set" / "MSRVTT_data.json"
    document = json.loads(file.read_text())
    document["sentences"] += [{"caption": missing, "video_id": "video0"}]
    file.write_text(json.dumps(document))
    rows, warnings = rows_of(videos, "msrvtt", annotations=str(tmp_path / "set"))
    assert rows["video0"]["captions"] == ["one", "two"]
    assert "MSRVTT_data.json holds 1 empty captions; they are left out" in warnings
    document["sentences"][-1] = {"caption": "four", "video_id": missing}
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"MSRVTT_data\.json, sentence 4: .*video_id '' is not allowed"):
        rows_of(videos, "msrvtt", annotations=str(tmp_path / "set"))


@BOTH
@pytest.mark.parametrize("column", ["question", "answer", "answer_type"])
def test_a_missing_value_of_msrvtt_qa_is_none(videos: Path, tmp_path: Path, missing: Any, column: str) -> None:
    given = {split: [(f"video{place}", "who is it", "a dog")] for place, split in enumerate(("train", "val", "test"))}
    write_msrvtt_qa(tmp_path / "set", given)
    file = tmp_path / "set" / "test.jsonl"
    line = {**json.loads(file.read_text()), column: missing, "video_id": "video3"}
    file.write_text(file.read_text() + "\n" + json.dumps(line) + "\n")
    rows, warnings = rows_of(videos, "msrvtt_qa", annotations=str(tmp_path / "set"))
    if column == "answer_type":
        assert rows["video3"]["questions"][0]["type"] == "who"
    else:
        assert "video3" not in rows
        assert "test.jsonl: 1 lines have an empty question or answer and are left out" in warnings


@BOTH
def test_a_missing_sentence_of_a_paragraph_or_of_msvd_is_left_out_and_counted(
    videos: Path, tmp_path: Path, missing: Any
) -> None:
    moment = {"duration": 3.5, "timestamps": [[0, 1], [1, 2], [2, 3]], "sentences": ["one", missing, "two"]}
    whole = {**moment, "sentences": ["one", "two", "three"]}
    write_activitynet(tmp_path / "activitynet", {"train": {"video0": moment}, "val_1": {"video1": whole}})
    moments = {split: {f"video{place}": ["one", "two"]} for place, split in enumerate(("train", "val", "test"))}
    moments["train"]["video0"][1:1] = [missing]
    write_didemo(tmp_path / "didemo", moments)
    for dataset, name in (("activitynet", "train.json"), ("didemo", "train_data.json")):
        rows, warnings = rows_of(videos, dataset, annotations=str(tmp_path / dataset))
        assert rows["video0"]["captions"] == ["one two"]
        assert f"{name}: 1 empty sentences are left out" in warnings
    lists = {"train": ["video0"], "val": ["video1"], "test": ["video2"]}
    write_msvd(tmp_path / "msvd", lists, {f"video{number}": ["one"] for number in range(3)})
    file = tmp_path / "msvd" / "raw-captions.pkl"
    captions = pickle.loads(file.read_bytes())
    captions["video0"].append(missing)
    file.write_bytes(pickle.dumps(captions))
    rows, warnings = rows_of(videos, "msvd", annotations=str(tmp_path / "msvd"))
    assert rows["video0"]["captions"] == ["one"]
    assert "raw-captions.pkl: 1 captions are empty" in warnings


def test_words_that_only_look_like_missing_ones_are_kept(videos: Path) -> None:
    (videos / "own.csv").write_text("path,caption,split\na.mp4,nan,train\nb.mp4,None,train\nc.mp4,null,test\n")
    rows, _ = rows_of(videos, "captions_file", annotations=str(videos / "own.csv"))
    assert words_of(rows) == '[[["nan"], []], [["None"], []], [["null"], []]]'


@pytest.mark.parametrize("value", ["true", "[1]", '{"a": 1}', "1e999"])
def test_what_is_no_text_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "own.jsonl").write_text(f'{{"path": "a.mp4", "caption": {value}}}\n')
    with pytest.raises(ValueError, match=r"line 1: caption is a .*; a text is needed"):
        build_manifest(DataConfig(dataset="captions_file", annotations=str(tmp_path / "own.jsonl")))


def csv_twice(folder: Path) -> DataConfig:
    (folder / "own.csv").write_text("path,caption,split,caption\na.mp4,one,train,two\n")
    return DataConfig(dataset="captions_file", annotations=str(folder / "own.csv"))


def jsonl_twice(folder: Path) -> DataConfig:
    (folder / "own.jsonl").write_text('{"path": "a.mp4", "caption": "one", "caption": "two"}\n')
    return DataConfig(dataset="captions_file", annotations=str(folder / "own.jsonl"))


def list_twice(folder: Path) -> DataConfig:
    write_msrvtt(folder, train={"video0": ["one"]}, test={"video1": "three"})
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence,sentence\nvideo1,one,two\n")
    return DataConfig(annotations=str(folder), videos=str(folder))


def object_twice(folder: Path) -> DataConfig:
    moment = {"duration": 3.5, "timestamps": [[0, 1]], "sentences": ["one"]}
    write_activitynet(folder, {"train": {"video0": moment}, "val_1": {"video1": moment}})
    text = json.dumps({"video0": moment})
    (folder / "train.json").write_text(f"{text[:-1]}, {text[1:]}")
    return DataConfig(dataset="activitynet", annotations=str(folder), videos=str(folder))


@pytest.mark.parametrize("write", [csv_twice, jsonl_twice, list_twice, object_twice])
def test_what_is_there_twice_is_refused_where_one_of_both_would_be_lost(
    tmp_path: Path, write: Callable[[Path], DataConfig]
) -> None:
    with pytest.raises(ValueError, match=r"'(caption|sentence|video0)' more than once; keep one of each"):
        build_manifest(write(tmp_path))


def test_an_answer_with_two_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text('{"a": 0, "b": 1, "a": 2}')
    with pytest.raises(ValueError, match=r"answers\.json is not an answer vocabulary: .*'a' more than once"):
        read_vocabulary(str(tmp_path / "answers.json"))


def test_a_comma_that_is_not_quoted_cuts_no_sentence(videos: Path, tmp_path: Path) -> None:
    write_msrvtt(tmp_path / "set", train={"video0": ["one"]}, test={"video1": "a man, a woman and a dog run"})
    rows, _ = rows_of(videos, "msrvtt", annotations=str(tmp_path / "set"))
    assert rows["video1"]["captions"] == ["a man, a woman and a dog run"]
    file = tmp_path / "set" / "MSRVTT_JSFUSION_test.csv"
    file.write_text(file.read_text().replace('"', ""))
    with pytest.raises(ValueError, match=r"JSFUSION_test\.csv, line 2: the number of fields .* 5 and 4; put texts"):
        rows_of(videos, "msrvtt", annotations=str(tmp_path / "set"))


def test_all_sentences_of_a_tested_video_are_queries_and_it_is_said(videos: Path, tmp_path: Path) -> None:
    write_msrvtt(tmp_path / "set", train={"video0": ["one"]}, test={"video1": "first", "video2": "other"})
    with (tmp_path / "set" / "MSRVTT_JSFUSION_test.csv").open("a") as file:
        file.write("ret9,msr9,video1,second\n")
    rows, warnings = rows_of(videos, "msrvtt", annotations=str(tmp_path / "set"))
    assert rows["video1"]["captions"] == ["first", "second"]
    assert "MSRVTT_JSFUSION_test.csv: 1 videos have more than one sentence, each a query" in warnings


def test_empty_lines_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"x": "1"}\n  \n{"x": "2"}\n\n')
    (tmp_path / "a.csv").write_text("x,y\n1,a\n\n2,b\n\n")
    for name in ("a.jsonl", "a.csv"):
        found = list(read_records(str(tmp_path / name), published_format("x")))
        assert [(number, record["x"]) for number, record in found] == [(2, "1"), (4, "2")]


def test_the_same_key_in_two_objects_is_no_repetition() -> None:
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]
