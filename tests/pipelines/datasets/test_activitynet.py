from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hbi_models.clip.tokenizer import CaptionTokenizer
from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.recipe.data import DataConfig
from tests.dataset_copies import write_activitynet

SENTENCES = [" A man stands on a roof.\n", "He  lifts a tile. ", "", "He smiles."]


def record(**changes: Any) -> dict[str, Any]:
    """What train.json or val_1.json holds of a video."""
    spans = [[0, 5.2], [3.1, 9], [9, 9], [20.5, 82.3]]
    return {"duration": 82.73, "timestamps": spans, "sentences": SENTENCES, **changes}


@pytest.fixture
def activitynet(tmp_path: Path) -> DataConfig:
    """Six training and two test videos; the files are not videos, nobody opens them."""
    train = {f"v_train-_{number}": record(sentences=[f"Video {number}."]) for number in range(6)}
    test = {"v_--1DO2V4K74": record(), "v_QOlSCBRmfWY": record(duration=180)}
    write_activitynet(tmp_path / "annotations", {"train": train, "val_1": test})
    for video, suffix in zip(
        [*train, *test], [".mp4", ".mkv", ".webm", ".MP4", ".mkv.mp4", "", ".mkv", ".webm"], strict=True
    ):
        place = tmp_path / "videos" / ("train" if video in train else "val") / f"{video}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(video.encode())
    return DataConfig(
        dataset="activitynet",
        annotations=str(tmp_path / "annotations"),
        videos=str(tmp_path / "videos"),
        validation_videos=2,
    )


def file(config: DataConfig, name: str) -> Path:
    assert config.annotations is not None
    return Path(config.annotations) / name


def change(config: DataConfig, name: str, **records: Any) -> None:
    path = file(config, name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **records}))


def rows_of(config: DataConfig) -> dict[str, dict[str, Any]]:
    return {row["video_id"]: row for row in build_manifest(config).table.to_pylist()}


def test_the_sentences_of_a_video_are_its_one_caption(activitynet: DataConfig) -> None:
    rows = rows_of(activitynet)
    assert rows["v_--1DO2V4K74"]["captions"] == ["A man stands on a roof. He lifts a tile. He smiles."]
    assert {len(row["captions"]) for row in rows.values()} == {1}


def test_the_segment_is_the_duration_rounded_up(activitynet: DataConfig) -> None:
    rows = rows_of(activitynet)
    assert (rows["v_--1DO2V4K74"]["start_s"], rows["v_--1DO2V4K74"]["end_s"]) == (0, 83)
    assert rows["v_QOlSCBRmfWY"]["end_s"] == 180


def test_val_1_is_the_test_split_and_validation_is_carved_from_training(activitynet: DataConfig) -> None:
    splits = {video: row["split"] for video, row in rows_of(activitynet).items()}
    assert {video for video, split in splits.items() if split == "test"} == {"v_--1DO2V4K74", "v_QOlSCBRmfWY"}
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 4 + ["val"] * 2


def test_videos_have_any_container(activitynet: DataConfig) -> None:
    suffixes = {Path(row["uri"]).name.removeprefix(video) for video, row in rows_of(activitynet).items()}
    assert suffixes == {".mp4", ".mkv", ".webm", ".MP4", ".mkv.mp4", ""}


def test_numbers_that_differ_from_the_published_ones_are_warned_of(activitynet: DataConfig) -> None:
    warnings = build_manifest(activitynet).warnings
    assert "train_ids.json holds 6 videos; published: 10,009" in warnings
    assert "val_ids.json holds 2 videos; published: 4,917" in warnings


def test_ids_without_annotation_and_annotations_without_id_are_counted(activitynet: DataConfig) -> None:
    ids = json.loads(file(activitynet, "val_ids.json").read_text())
    file(activitynet, "val_ids.json").write_text(json.dumps([*ids, "v_silent", "v_blank"]))
    change(activitynet, "val_1.json", v_extra=record(), v_blank=record(sentences=[" ", "\n"]))
    manifest = build_manifest(activitynet)
    assert manifest.table.column("split").to_pylist().count("test") == 2
    assert (
        "val_ids.json: 2 videos have no caption in val_1.json and are left out: v_silent, v_blank" in manifest.warnings
    )
    assert "val_1.json: 1 videos are not in val_ids.json and are left out: 'v_extra'" in manifest.warnings


def test_empty_sentences_and_reversed_spans_are_counted_and_change_nothing(activitynet: DataConfig) -> None:
    before = rows_of(activitynet)
    odd = [[9, 2.5], [3, 3], [0, 50], [10, 20], [1], ["a", "b"], None]
    change(activitynet, "val_1.json", v_QOlSCBRmfWY=record(duration=180, timestamps=odd))
    manifest = build_manifest(activitynet)
    assert {row["video_id"]: row for row in manifest.table.to_pylist()} == before
    # Zero length and overlapping are not among them.
    assert "val_1.json: 4 sentences end before they start; their times are not used" in manifest.warnings
    assert "val_1.json: 2 empty sentences are left out" in manifest.warnings
    assert not any(warning.startswith("train.json") for warning in manifest.warnings)


@pytest.mark.parametrize(
    "sentence",
    [
        "骑自行车的人在公园里。",
        "رجل يركب دراجة في الحديقة.",
        "🚴🏽‍♂️🌳👍🏽 ok",
        "Ünïcödé ümlauts",
        "word " * 5000,
        "骑" * 5000,
        "a" * 5000,
    ],
    ids=["Chinese", "Arabic", "emoji", "accents", "long", "long without spaces", "one long word"],
)
def test_any_script_and_length_passes_through_manifest_and_tokenizer(activitynet: DataConfig, sentence: str) -> None:
    change(activitynet, "val_1.json", v_QOlSCBRmfWY=record(sentences=["First.", sentence]))
    (caption,) = rows_of(activitynet)["v_QOlSCBRmfWY"]["captions"]
    assert caption == f"First. {sentence.strip()}"
    tokenizer = CaptionTokenizer(max_words=64)
    pieces = tokenizer.encode(caption)
    token_ids, mask = tokenizer([caption])
    length = int(mask.sum())
    assert length == min(64, len(pieces) + 2)
    assert token_ids[0, : length - 1].tolist() == [49406, *pieces[: length - 2]]
    assert token_ids[0, length - 1] == 49407, "the end token, whose features stand for the caption, is kept"
    assert not token_ids[0, length:].any()


def test_half_of_an_emoji_is_left_out(activitynet: DataConfig) -> None:
    # JSON in ASCII spells an emoji as two escapes; a text cut off between them cannot be stored.
    change(activitynet, "val_1.json", v_QOlSCBRmfWY=record(sentences=["nice \ud83d", "\ud83d\ude00"]))
    assert rows_of(activitynet)["v_QOlSCBRmfWY"]["captions"] == ["nice 😀"]


def test_missing_videos_are_counted_by_the_address_where_they_were_expected(activitynet: DataConfig) -> None:
    assert activitynet.videos is not None
    (Path(activitynet.videos) / "val" / "v_QOlSCBRmfWY.webm").unlink()
    manifest = build_manifest(replace(activitynet, max_missing_fraction=0.2))
    (error,) = manifest.errors.to_pylist()
    assert (error["video_id"], error["uri"]) == ("v_QOlSCBRmfWY", f"{activitynet.videos}/v_QOlSCBRmfWY.mp4")
    assert any(warning.startswith("1 of 8 videos are missing") for warning in manifest.warnings)


@pytest.mark.parametrize("name", ["train_ids.json", "val_ids.json", "train.json", "val_1.json"])
def test_absent_annotation_files_are_named_and_present_ones_are_digested(activitynet: DataConfig, name: str) -> None:
    digest = manifest_digest(activitynet)
    file(activitynet, name).write_text(file(activitynet, name).read_text() + "\n")
    assert manifest_digest(activitynet) != digest
    file(activitynet, name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}; set data.annotations to the folder of ActivityNet"):
        build_manifest(activitynet)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val_ids.json", "{", r"val_ids\.json: Expecting"),
        ("val_ids.json", "[" * 100_000, r"val_ids\.json: .*recursion"),
        ("val_ids.json", '{"v_a": 1}', r"val_ids\.json: it is not a list of texts"),
        ("val_ids.json", "[1]", r"val_ids\.json: it is not a list of texts"),
        ("val_ids.json", '["v_a/b"]', r"val_ids\.json: video_id 'v_a/b' is not allowed"),
        ("val_ids.json", '["v_train-_0"]', r"train_ids\.json and val_ids\.json share 1 videos|val_ids\.json and"),
        ("val_1.json", "[]", r"val_1\.json: .*no attribute 'items'.*published form"),
        ("val_1.json", '{"v_a": []}', r"val_1\.json, 'v_a': "),
        ("val_1.json", '{"v_a": {"sentences": ["x"]}}', r"val_1\.json, 'v_a': 'duration' is missing"),
        ("val_1.json", '{"v_a": {"sentences": "x", "duration": 1}}', r"'v_a': sentences is not a list of texts"),
        ("val_1.json", '{"v_a": {"sentences": ["x"], "duration": 1}}', r"'v_a': 'timestamps' is missing"),
        ("val_1.json", '{"v_a": {"sentences": ["x"], "duration": 0}}', r"'v_a': duration is 0; it must be positive"),
        ("val_1.json", '{"v_a": {"sentences": ["x"], "duration": NaN}}', r"'v_a': cannot convert float NaN"),
        ("val_1.json", '{"v_a": {"sentences": ["x"], "duration": Infinity}}', r"'v_a': cannot convert float inf"),
        ("val_1.json", '{"v_a": {"sentences": ["x"], "duration": "1"}}', r"'v_a': must be real number"),
    ],
)
def test_malformed_annotations_are_refused_by_name(
    activitynet: DataConfig, name: str, content: str, message: str
) -> None:
    file(activitynet, name).write_text(content)
    with pytest.raises(ValueError, match=message):
        build_manifest(activitynet)
