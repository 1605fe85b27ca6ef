"""The field's tests of a data set by name: which videos and captions each takes, and what it says of its counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hbi_models.config_reading import config_from_plain
from pipelines.datasets.manifest import build_manifest
from pipelines.datasets.protocols import PROTOCOLS, named_protocol
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.stages.settings import counting
from pipelines.workspace.artifact import plain
from tests.dataset_copies import write_activitynet, write_didemo, write_msrvtt

Captions = Mapping[str, list[str]]


def config(folder: Path, dataset: Any, videos: list[str], **options: Any) -> DataConfig:
    (folder / "videos").mkdir(exist_ok=True)
    for video in videos:
        (folder / "videos" / f"{video}.mp4").write_bytes(video.encode())
    return DataConfig(
        dataset=dataset,
        annotations=str(folder / "annotations"),
        videos=str(folder / "videos"),
        validation_videos=0,
        max_missing_fraction=0.99,
        **options,
    )


def split_captions(data: DataConfig) -> dict[str, Captions]:
    rows = build_manifest(data).table.to_pylist()
    splits = dict.fromkeys(row["split"] for row in rows)
    return {split: {row["video_id"]: row["captions"] for row in rows if row["split"] == split} for split in splits}


def sentences(folder: Path, videos: list[dict[str, Any]], numbers: list[int]) -> None:
    (folder / "annotations").mkdir()
    texts = [{"caption": f"{n} of video{v}", "video_id": f"video{v}", "sen_id": n} for v in numbers for n in range(2)]
    (folder / "annotations/MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": texts}))


def test_the_full_split_of_msrvtt_goes_by_the_published_numbers_where_the_file_says_none(tmp_path: Path) -> None:
    numbers = [0, 6512, 6513, 7009, 7010, 9999]
    sentences(tmp_path, [], numbers)
    data = config(tmp_path, "msrvtt", [f"video{number}" for number in numbers], msrvtt_protocol="full")
    found = split_captions(data)
    assert {split: list(videos) for split, videos in found.items()} == {
        "train": ["video0", "video6512"],
        "val": ["video6513", "video7009"],
        "test": ["video7010", "video9999"],
    }
    assert found["test"]["video9999"] == ["0 of video9999", "1 of video9999"]
    warnings = "\n".join(build_manifest(data).warnings)
    assert "holds 2 videos of test; published: 2,990" in warnings
    assert "holds 4 captions of test videos; published: 59,800" in warnings


def test_the_full_split_of_msrvtt_goes_by_the_file_where_it_says_one(tmp_path: Path) -> None:
    splits = {"video1": "validate", "video2": "test", "video3": "train"}
    sentences(tmp_path, [{"video_id": video, "split": split} for video, split in splits.items()], [1, 2, 3])
    found = split_captions(config(tmp_path, "msrvtt", list(splits), msrvtt_protocol="full"))
    assert {split: list(videos) for split, videos in found.items()} == {
        "train": ["video3"],
        "val": ["video1"],
        "test": ["video2"],
    }


def test_an_unknown_split_of_msrvtt_is_refused(tmp_path: Path) -> None:
    sentences(tmp_path, [{"video_id": "video1", "split": "trial"}], [1])
    with pytest.raises(ValueError, match=r"MSRVTT_data.json: 'trial' is missing; the published form is"):
        build_manifest(config(tmp_path, "msrvtt", ["video1"], msrvtt_protocol="full"))


def test_a_listed_part_of_the_test_is_tested_and_nothing_of_the_training_is_lost(tmp_path: Path) -> None:
    write_msrvtt(
        tmp_path / "annotations", train={"video1": ["a"], "video2": ["b"]}, test={"video8": "c", "video9": "d"}
    )
    (tmp_path / "list.txt").write_text("video9\n")
    data = config(tmp_path, "msrvtt", ["video1", "video2", "video8", "video9"], test_videos=str(tmp_path / "list.txt"))
    assert split_captions(data) == {"train": {"video1": ["a"], "video2": ["b"]}, "test": {"video9": ["d"]}}
    (tmp_path / "list.txt").write_text("video9\nvideo2\n")
    with pytest.raises(ValueError, match=r"1 of the 2 ids in .* are not test videos: video2"):
        build_manifest(data)


def test_the_list_counts_by_its_contents(tmp_path: Path) -> None:
    def listed(name: str, text: str) -> Any:
        (tmp_path / name).write_text(text)
        return counting(DataConfig(test_videos=str(tmp_path / name)))

    assert listed("a.txt", "video1\n") == listed("b.txt", "video1\n") != listed("c.txt", "video2\n")


def record(*texts: str) -> dict[str, Any]:
    return {"duration": 30.0, "timestamps": [[0, 9]] * len(texts), "sentences": list(texts)}


def activitynet(folder: Path, **options: Any) -> DataConfig:
    write_activitynet(
        folder / "annotations",
        {"train": {"v_a": record("One. ", "Two.")}, "val_1": {"v_b": record("Three.", ""), "v_c": record("Four.")}},
    )
    (folder / "annotations/val_2.json").write_text(json.dumps({"v_b": record("Five.", "Six.")}))
    return config(folder, "activitynet", ["v_a", "v_b", "v_c"], **options)


def test_activitynet_is_tested_with_the_annotations_that_are_asked_for(tmp_path: Path) -> None:
    assert split_captions(activitynet(tmp_path))["test"] == {"v_b": ["Three."], "v_c": ["Four."]}
    (other := tmp_path / "other").mkdir()
    found = split_captions(activitynet(other, activitynet_test="val_2"))
    assert found == {"train": {"v_a": ["One. Two."]}, "test": {"v_b": ["Five. Six."]}}


def test_sentences_of_a_paragraph_may_be_queries_of_their_own(tmp_path: Path) -> None:
    found = split_captions(activitynet(tmp_path, text_queries="sentence"))
    assert found == {"train": {"v_a": ["One.", "Two."]}, "test": {"v_b": ["Three."], "v_c": ["Four."]}}
    (folder := tmp_path / "didemo").mkdir()
    write_didemo(folder / "annotations", {"train": {"x": ["a b", "c"]}, "val": {"y": ["d"]}, "test": {"z": ["e", "f"]}})
    found = split_captions(config(folder, "didemo", ["x", "y", "z"], text_queries="sentence"))
    assert found == {"train": {"x": ["a b", "c"]}, "val": {"y": ["d"]}, "test": {"z": ["e", "f"]}}


@pytest.mark.parametrize(
    "options",
    [
        {"dataset": "msvd", "msrvtt_protocol": "full"},
        {"dataset": "msrvtt", "activitynet_test": "val_2"},
        {"dataset": "msrvtt", "text_queries": "sentence"},
        {"dataset": "msrvtt", "msrvtt_protocol": "full", "shapes": ShapesConfig()},
        {"dataset": "msrvtt", "msrvtt_protocol": "full", "features": "features.parquet"},
    ],
)
def test_options_of_another_data_set_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.(msrvtt_protocol|activitynet_test|text_queries) is .* it is for"):
        DataConfig(**options)


def test_later_options_leave_documents_as_they_were_and_are_read_back() -> None:
    later = {"msrvtt_protocol", "activitynet_test", "text_queries", "test_videos"}
    assert later.isdisjoint(plain(DataConfig())) and later.isdisjoint(counting(DataConfig()))
    changed = DataConfig(dataset="activitynet", activitynet_test="val_2", text_queries="sentence")
    assert config_from_plain(DataConfig, plain(changed)) == changed


@pytest.mark.parametrize(
    ("options", "name", "videos", "captions"),
    [
        ({"dataset": "msrvtt"}, "msrvtt_1k_a", 1_000, 1_000),
        ({"dataset": "msrvtt", "msrvtt_protocol": "full"}, "msrvtt_full", 2_990, 59_800),
        ({"dataset": "msrvtt", "test_videos": "list.txt"}, "msrvtt_mteb", 879, 879),
        ({"dataset": "msvd"}, "msvd", 670, 27_763),
        ({"dataset": "msvd", "test_videos": "list.txt"}, "msvd_listed", 660, 12_345),
        ({"dataset": "activitynet"}, "activitynet_val_1_paragraph", 4_917, 4_917),
        ({"dataset": "activitynet", "activitynet_test": "val_2"}, "activitynet_val_2_paragraph", 4_885, 4_885),
        ({"dataset": "activitynet", "text_queries": "sentence"}, "activitynet_val_1_sentence", 4_917, 17_505),
        ({"dataset": "didemo"}, "didemo_paragraph", 1_004, 1_004),
    ],
)
def test_protocols_are_whole_with_their_published_counts_alone(
    options: dict[str, Any], name: str, videos: int, captions: int
) -> None:
    protocol = named_protocol(DataConfig(**options), "test")
    assert protocol is PROTOCOLS[name]
    assert protocol.checked(videos, captions)["complete"]
    assert not protocol.checked(videos - 13, captions - 13)["complete"]
    assert protocol.source


def test_validation_and_own_data_have_no_name() -> None:
    assert named_protocol(DataConfig(), "val") is None
    assert named_protocol(DataConfig(shapes=ShapesConfig()), "test") is None
    assert named_protocol(DataConfig(dataset="captions_file"), "test") is None
    given = DataConfig(features="features.parquet")
    assert named_protocol(given, "test") is None and given.name == "given features"
