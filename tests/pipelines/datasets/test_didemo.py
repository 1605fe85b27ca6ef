from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.recipe.data import DataConfig
from pipelines.video.sampling import sample_frames
from tests.dataset_copies import write_didemo

DOG, CAR, SEA, CAT = (f"1234567{n}@N0{n}_123456789{n}_abcdef123{n}" for n in range(4))
SPLITS = {
    "train": {f"{DOG}.mov": ["a dog jumps", " the  dog sits\n"], f"{CAR}.3gp": ["a car turns left"]},
    "val": {f"{SEA}.avi": ["waves roll in"]},
    "test": {f"{CAT}.mp4": ["a cat looks up", "the cat leaves", ""]},
}


@pytest.fixture
def didemo(tmp_path: Path) -> DataConfig:
    """Four videos in DiDeMo's layout; the files are not videos, nobody opens them."""
    write_didemo(tmp_path / "annotations", SPLITS)
    (tmp_path / "videos").mkdir()
    for name in (f"{DOG}.mp4", CAR, f"{SEA}.avi.mp4", f"{CAT}.mp4"):
        (tmp_path / "videos" / name).write_bytes(name.encode())
    return DataConfig(dataset="didemo", annotations=str(tmp_path / "annotations"), videos=str(tmp_path / "videos"))


def file(config: DataConfig, name: str) -> Path:
    assert config.annotations is not None
    return Path(config.annotations) / name


def rows_of(config: DataConfig) -> dict[str, dict[str, Any]]:
    return {row["video_id"]: row for row in build_manifest(config).table.to_pylist()}


def test_the_descriptions_of_a_video_are_its_one_caption(didemo: DataConfig) -> None:
    assert {video: row["captions"] for video, row in rows_of(didemo).items()} == {
        DOG: ["a dog jumps the dog sits"],
        CAR: ["a car turns left"],
        SEA: ["waves roll in"],
        CAT: ["a cat looks up the cat leaves"],
    }


def test_the_segment_ends_with_the_frame_at_second_30(didemo: DataConfig) -> None:
    segments = {(row["start_s"], row["end_s"]) for row in rows_of(didemo).values()}
    assert segments == {(0, 31)}
    ((start_s, end_s),) = segments
    # A minute at 25 frames per second, one looked at per second.
    frames = sample_frames(fps=25, num_frames=1500, max_frames=64, rate=1, start_s=start_s, end_s=end_s)
    assert [frame / 25 for frame in frames] == list(range(31))


def test_the_published_splits_are_used_and_none_is_carved(didemo: DataConfig) -> None:
    assert didemo.validation_videos > 0
    assert [row["split"] for row in rows_of(didemo).values()] == ["train", "train", "val", "test"]


@pytest.mark.parametrize("listed", ["", ".mov", ".mp4", ".avi", ".3gp"])
@pytest.mark.parametrize("described", ["", ".mov", ".m4v"])
@pytest.mark.parametrize("stored", ["", ".mp4", ".avi", ".mov.mp4", ".MOV"])
def test_ids_and_files_are_compared_without_suffixes(
    didemo: DataConfig, listed: str, described: str, stored: str
) -> None:
    assert didemo.videos is not None
    (Path(didemo.videos) / f"{DOG}.mp4").rename(Path(didemo.videos) / f"{DOG}{stored}")
    file(didemo, "train_list.txt").write_text(f"{DOG}{listed}\n{CAR}\n")
    records = [
        {"video": f"{DOG}{described}", "description": "a dog jumps", "times": [[0, 0]]},
        {"video": CAR, "description": "a car", "times": [[1, 2]]},
    ]
    file(didemo, "train_data.json").write_text(json.dumps(records))
    manifest = build_manifest(didemo)
    assert len(manifest.errors) == 0
    row = {row["video_id"]: row for row in manifest.table.to_pylist()}[DOG]
    assert (row["uri"], row["captions"]) == (f"{didemo.videos}/{DOG}{stored}", ["a dog jumps"])


def test_two_files_of_one_video_are_refused(didemo: DataConfig) -> None:
    assert didemo.videos is not None
    (Path(didemo.videos) / f"{DOG}.mov").touch()
    with pytest.raises(ValueError, match=rf"several files of {DOG}: .*keep one"):
        build_manifest(didemo)


def test_numbers_that_differ_from_the_published_ones_are_warned_of(didemo: DataConfig) -> None:
    warnings = build_manifest(didemo).warnings
    assert "train_list.txt holds 2 videos; published: 8,392 or 8,395" in warnings
    assert "val_list.txt holds 1 videos; published: 1,065" in warnings
    assert "test_list.txt holds 1 videos; published: 1,003 or 1,004" in warnings


def test_what_does_not_fit_together_is_left_out_and_counted(didemo: DataConfig) -> None:
    records = [
        {"video": f"{CAT}.mp4", "description": "a cat looks up", "times": [[5, 2], [3, 3], [0, 5]]},
        {"video": "extra.mp4", "description": "not listed", "times": []},
        {"video": f"{CAT}.mov", "description": "  ", "times": [[1, 1]]},
    ]
    file(didemo, "test_data.json").write_text(json.dumps(records))
    file(didemo, "test_list.txt").write_text(f"{CAT}.mp4\n99@N00_9_9.mov\n")
    manifest = build_manifest(didemo)
    assert [row["captions"] for row in manifest.table.to_pylist() if row["split"] == "test"] == [["a cat looks up"]]
    for warning in (
        "test_list.txt: 1 videos have no caption in test_data.json and are left out: 99@N00_9_9",
        "test_data.json: 1 videos are not in test_list.txt and are left out: 'extra'",
        "test_data.json: 1 empty sentences are left out",
        "test_data.json: 1 sentences end before they start; their times are not used",
    ):
        assert warning in manifest.warnings


def test_missing_videos_become_errors(didemo: DataConfig) -> None:
    assert didemo.videos is not None
    (Path(didemo.videos) / CAR).unlink()
    manifest = build_manifest(replace(didemo, max_missing_fraction=0.25))
    (error,) = manifest.errors.to_pylist()
    assert (error["video_id"], error["stage"], error["reason"]) == (CAR, "manifest", "missing")


def test_one_video_in_two_lists_is_refused_whatever_its_suffixes(didemo: DataConfig) -> None:
    file(didemo, "val_list.txt").write_text(f"{CAT}.mov\n")
    with pytest.raises(ValueError, match=rf"val_list\.txt and test_list\.txt share 1 videos \({CAT}\)"):
        build_manifest(didemo)


@pytest.mark.parametrize("name", [f"{split}_{kind}" for split in SPLITS for kind in ("list.txt", "data.json")])
def test_absent_annotation_files_are_named_and_present_ones_are_digested(didemo: DataConfig, name: str) -> None:
    digest = manifest_digest(didemo)
    file(didemo, name).write_text(file(didemo, name).read_text() + "\n")
    assert manifest_digest(didemo) != digest
    file(didemo, name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}; set data.annotations to the folder of DiDeMo's"):
        build_manifest(didemo)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_list.txt", f"{CAT}?\n", r"test_list\.txt: video_id .* is not allowed"),
        ("test_data.json", "{", r"test_data\.json: Expecting"),
        ("test_data.json", "3", r"test_data\.json: 'int' object is not iterable.*published form"),
        ("test_data.json", '["x"]', r"test_data\.json, entry 1: "),
        ("test_data.json", '[{"video": "x", "times": []}]', r"test_data\.json, entry 1: 'description' is missing"),
        ("test_data.json", '[{"video": 1, "description": "x"}]', r"entry 1: video or description is not a text"),
        ("test_data.json", '[{"video": "x", "description": "y"}]', r"entry 1: 'times' is missing"),
    ],
)
def test_malformed_annotations_are_refused_by_name(didemo: DataConfig, name: str, content: str, message: str) -> None:
    file(didemo, name).write_text(content)
    with pytest.raises(ValueError, match=message):
        build_manifest(didemo)
