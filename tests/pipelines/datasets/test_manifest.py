from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.shapes.data_set import write_annotations
from pipelines.workspace.records import ERRORS, MANIFEST
from pipelines.workspace.storage import Storage


@pytest.fixture
def msrvtt(tmp_path: Path) -> DataConfig:
    """Six training and two test videos in MSR-VTT's layout; the files are not videos, nobody opens them."""
    annotations, videos = tmp_path / "annotations", tmp_path / "videos"
    annotations.mkdir()
    videos.mkdir()
    ids = [f"video{number}" for number in range(8)]
    sentences = [
        {"caption": f"caption {i} of {video}", "video_id": video, "sen_id": i} for video in ids for i in (0, 1)
    ]
    (annotations / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    _write_csv(annotations / "MSRVTT_train.9k.csv", ["video_id"], [[video] for video in ids[:6]])
    rows = [[f"ret{i}", f"msr{i}", video, f"the test caption of {video}"] for i, video in enumerate(ids[6:])]
    _write_csv(annotations / "MSRVTT_JSFUSION_test.csv", ["key", "vid_key", "video_id", "sentence"], rows)
    for video in ids:
        (videos / f"{video}.mp4").write_bytes(video.encode())
    return DataConfig(annotations=str(annotations), videos=str(videos), validation_videos=2)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _splits(config: DataConfig) -> dict[str, str]:
    return {row["video_id"]: row["split"] for row in build_manifest(config).table.to_pylist()}


def test_one_row_per_video_with_its_captions(msrvtt: DataConfig) -> None:
    manifest = build_manifest(msrvtt)
    assert manifest.table.schema.equals(MANIFEST)
    assert manifest.errors.schema.equals(ERRORS)
    rows = {row["video_id"]: row for row in manifest.table.to_pylist()}
    assert list(rows) == [f"video{number}" for number in range(8)]
    assert rows["video1"]["captions"] == ["caption 0 of video1", "caption 1 of video1"]
    # The published test has one caption per video, though the video has more.
    assert rows["video7"]["captions"] == ["the test caption of video7"]
    assert rows["video7"]["split"] == "test"
    assert rows["video1"]["uri"] == f"{msrvtt.videos}/video1.mp4"
    assert (rows["video1"]["start_s"], rows["video1"]["end_s"]) == (None, None)


def test_numbers_that_differ_from_the_published_ones_are_warned_of(msrvtt: DataConfig) -> None:
    warnings = "\n".join(build_manifest(msrvtt).warnings)
    assert "MSRVTT_train.9k.csv holds 6 videos; published: 9,000" in warnings
    assert "MSRVTT_JSFUSION_test.csv holds 2 videos; published: 1,000" in warnings


def test_validation_is_carved_from_training_and_stays_when_videos_are_added(msrvtt: DataConfig) -> None:
    splits = _splits(msrvtt)
    validation = {video for video, split in splits.items() if split == "val"}
    assert len(validation) == 2
    assert sorted(splits.values()).count("train") == 4
    assert msrvtt.annotations is not None
    listed = Path(msrvtt.annotations) / "MSRVTT_train.9k.csv"
    listed.write_text("video_id\n" + "\n".join(f"video{n}" for n in (5, 4, 3, 2, 1, 0)) + "\n")
    assert {video for video, split in _splits(msrvtt).items() if split == "val"} == validation
    assert "val" not in _splits(replace(msrvtt, validation_videos=0)).values()


def test_too_large_a_validation_split_is_cut_and_said(msrvtt: DataConfig) -> None:
    manifest = build_manifest(replace(msrvtt, validation_videos=200))
    assert manifest.table.column("split").to_pylist().count("val") == 2
    assert any("data.validation_videos is 200" in warning for warning in manifest.warnings)


def test_missing_videos_become_errors_up_to_the_limit(msrvtt: DataConfig) -> None:
    assert msrvtt.videos is not None
    (Path(msrvtt.videos) / "video3.mp4").unlink()
    with pytest.raises(ValueError, match=r"1 of 8 videos are missing \(12\.5%\).*video3\.mp4.*max_missing_fraction"):
        build_manifest(msrvtt)
    manifest = build_manifest(replace(msrvtt, max_missing_fraction=0.2))
    assert "video3" not in manifest.table.column("video_id").to_pylist()
    (error,) = manifest.errors.to_pylist()
    assert (error["video_id"], error["stage"], error["reason"]) == ("video3", "manifest", "missing")
    assert error["uri"].endswith("/videos/video3.mp4")
    assert manifest.missing == {"train": 1}
    assert any(warning.startswith("1 of 8 videos are missing, 1 of train (") for warning in manifest.warnings)


def test_videos_are_found_by_stem_below_the_folder(msrvtt: DataConfig) -> None:
    assert msrvtt.videos is not None
    folder = Path(msrvtt.videos)
    (folder / "deeper").mkdir()
    (folder / "video0.mp4").rename(folder / "deeper" / "video0.AVI")
    rows = {row["video_id"]: row["uri"] for row in build_manifest(msrvtt).table.to_pylist()}
    assert rows["video0"] == f"{folder}/deeper/video0.AVI"
    (folder / "video0.webm").touch()
    with pytest.raises(ValueError, match="several files of video0"):
        build_manifest(msrvtt)


def test_keys_change_with_the_file_and_only_with_it(msrvtt: DataConfig) -> None:
    def keys() -> dict[str, str]:
        return {row["video_id"]: row["key"] for row in build_manifest(msrvtt).table.to_pylist()}

    before = keys()
    assert len(set(before.values())) == 8
    assert keys() == before
    assert msrvtt.videos is not None
    (Path(msrvtt.videos) / "video2.mp4").write_bytes(b"another content")
    after = keys()
    assert {video for video in before if before[video] != after[video]} == {"video2"}


def test_the_digest_follows_annotations_and_videos(msrvtt: DataConfig) -> None:
    digests = [manifest_digest(msrvtt), manifest_digest(msrvtt)]
    assert msrvtt.videos is not None
    assert msrvtt.annotations is not None
    (Path(msrvtt.videos) / "video99.mp4").touch()
    digests.append(manifest_digest(msrvtt))
    with (Path(msrvtt.annotations) / "MSRVTT_train.9k.csv").open("a") as file:
        file.write("video99\n")
    digests.append(manifest_digest(msrvtt))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_video_in_both_lists_is_refused(msrvtt: DataConfig) -> None:
    assert msrvtt.annotations is not None
    with (Path(msrvtt.annotations) / "MSRVTT_train.9k.csv").open("a") as file:
        file.write("video7\n")
    with pytest.raises(ValueError, match="share 1 videos"):
        build_manifest(msrvtt)


@pytest.mark.parametrize("name", ["MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv"])
def test_absent_annotation_files_are_named(msrvtt: DataConfig, name: str) -> None:
    assert msrvtt.annotations is not None
    (Path(msrvtt.annotations) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        build_manifest(msrvtt)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MSRVTT_data.json", "{", r"MSRVTT_data\.json: .*the published form is"),
        ("MSRVTT_data.json", '{"sentences": [{"caption": "a", "video_id": "../x"}]}', "video_id '../x' is not allowed"),
        ("MSRVTT_train.9k.csv", "id\nvideo0\n", "has the columns id; it needs video_id"),
        ("MSRVTT_JSFUSION_test.csv", "video_id,sentence\nvideo7,\n", "lacks a value"),
        ("MSRVTT_JSFUSION_test.csv", "video_id,sentence\n../x,a\n", r"_test\.csv, line 2: video_id '../x' is not"),
        ("test.jsonl", '{"question": "what"}\n', "test.jsonl, line 1 lacks answer"),
        ("test.jsonl", "nonsense\n", "test.jsonl, line 1"),
    ],
)
def test_malformed_annotations_are_refused_by_name(msrvtt: DataConfig, name: str, content: str, message: str) -> None:
    assert msrvtt.annotations is not None
    (Path(msrvtt.annotations) / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        build_manifest(msrvtt)


def test_questions_are_attached_and_their_own_split_is_warned_of(msrvtt: DataConfig) -> None:
    assert msrvtt.annotations is not None
    question = {"answer": "cat", "question": "what is it", "answer_type": "what"}
    lines = [{**question, "video_id": "video7"}, {**question, "video_id": 1}]
    (Path(msrvtt.annotations) / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = build_manifest(msrvtt)
    rows: dict[str, Any] = {row["video_id"]: row for row in manifest.table.to_pylist()}
    assert rows["video1"]["questions"] == [{"question": "what is it", "answer": "cat", "type": "what", "split": "test"}]
    assert rows["video2"]["questions"] == []
    assert any("1 training videos of the retrieval lists are test videos" in warning for warning in manifest.warnings)


def test_paths_that_are_not_set_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"data\.annotations is not set"):
        build_manifest(DataConfig())
    with pytest.raises(ValueError, match=r"data\.videos is not set"):
        build_manifest(DataConfig(annotations="/somewhere"))
    with pytest.raises(FileNotFoundError, match=r"set data\.videos"):
        build_manifest(DataConfig(annotations="/somewhere", videos="/nowhere"))


def test_the_generated_data_set_is_read_without_warnings(tmp_path: Path) -> None:
    shapes = ShapesConfig(train_videos=12, test_videos=3)
    config = DataConfig(shapes=shapes, validation_videos=3)
    write_annotations(shapes, Storage(str(tmp_path)))
    (tmp_path / "videos").mkdir()
    for number in range(15):
        (tmp_path / "videos" / f"video{number}.mp4").touch()
    manifest = build_manifest(config, annotations=str(tmp_path), videos=str(tmp_path / "videos"))
    assert manifest.warnings == []
    splits = manifest.table.column("split").to_pylist()
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (9, 3, 3)
    assert all(row["questions"] for row in manifest.table.to_pylist())
