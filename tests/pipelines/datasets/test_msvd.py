from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.recipe.data import DataConfig
from tests.dataset_copies import write_msvd

LISTS = {
    "train": ["-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46"],
    "val": ["c_-eFL7Sfw4_19_35"],
    "test": ["e-j59PqJjSM_50_98"],
}
CAPTIONS = {
    "-4wsuPCjDBc_5_15": ["a squirrel eats", "the squirrel is eating a peanut", "a squirrel eats"],
    "mv89psg6zh4_33_46": ["a bird is in a sink"],
    "c_-eFL7Sfw4_19_35": ["someone cuts an onion", "une femme coupe un oignon"],
    "e-j59PqJjSM_50_98": ["a man rides a bike", "骑自行车的人", "رجل يركب دراجة", "🚴🏽‍♂️ in the park"],
}


@pytest.fixture
def msvd(tmp_path: Path) -> DataConfig:
    """Four videos in MSVD's layout; the files are not videos, nobody opens them."""
    write_msvd(tmp_path / "annotations", LISTS, CAPTIONS)
    (tmp_path / "videos").mkdir()
    for video in CAPTIONS:
        (tmp_path / "videos" / f"{video}.avi").write_bytes(video.encode())
    return DataConfig(dataset="msvd", annotations=str(tmp_path / "annotations"), videos=str(tmp_path / "videos"))


def captions_file(config: DataConfig) -> Path:
    assert config.annotations is not None
    return Path(config.annotations) / "raw-captions.pkl"


def captions_of(config: DataConfig) -> dict[str, list[str]]:
    return {row["video_id"]: row["captions"] for row in build_manifest(config).table.to_pylist()}


def test_each_list_is_a_split_and_every_video_has_all_its_captions(msvd: DataConfig) -> None:
    rows = {row["video_id"]: row for row in build_manifest(msvd).table.to_pylist()}
    assert {video: row["split"] for video, row in rows.items()} == {
        video: split for split, videos in LISTS.items() for video in videos
    }
    # Repeated captions are queries of their own, as in the published protocol; scripts stay as they are.
    assert {video: row["captions"] for video, row in rows.items()} == CAPTIONS
    assert {(row["start_s"], row["end_s"]) for row in rows.values()} == {(None, None)}
    assert rows["-4wsuPCjDBc_5_15"]["uri"] == f"{msvd.videos}/-4wsuPCjDBc_5_15.avi"


def test_the_published_validation_split_is_used_and_none_is_carved(msvd: DataConfig) -> None:
    manifest = build_manifest(replace(msvd, validation_videos=1))
    assert manifest.table.column("split").to_pylist() == ["train", "train", "val", "test"]


def test_numbers_that_differ_from_the_published_ones_are_warned_of(msvd: DataConfig) -> None:
    warnings = build_manifest(msvd).warnings
    for warning in (
        "train_list.txt holds 2 videos; published: 1,200",
        "val_list.txt holds 1 videos; published: 100",
        "test_list.txt holds 1 videos; published: 670",
        "raw-captions.pkl holds 4 captions of train videos; published: 48,774",
        "raw-captions.pkl holds 2 captions of val videos; published: 4,290",
        "raw-captions.pkl holds 4 captions of test videos; published: 27,763",
    ):
        assert warning in warnings


def test_what_does_not_fit_together_is_left_out_and_counted(msvd: DataConfig) -> None:
    given = {**CAPTIONS, "elsewhere\n_0_1": ["x"], "mv89psg6zh4_33_46": ["", " "]}
    captions_file(msvd).write_bytes(
        pickle.dumps({video: [text.split(" ") for text in given[video]] for video in given})
    )
    manifest = build_manifest(msvd)
    assert "mv89psg6zh4_33_46" not in manifest.table.column("video_id").to_pylist()
    warnings = "\n".join(manifest.warnings)
    assert "the lists: 1 videos have no caption in raw-captions.pkl and are left out: mv89psg6zh4_33_46" in warnings
    assert r"raw-captions.pkl: 1 videos are not in the lists and are left out: 'elsewhere\n_0_1'" in warnings
    assert "raw-captions.pkl: 2 captions are empty or not in UTF-8 and are left out" in warnings


def test_missing_videos_are_expected_as_avi_and_become_errors(msvd: DataConfig) -> None:
    assert msvd.videos is not None
    (Path(msvd.videos) / "e-j59PqJjSM_50_98.avi").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 videos are missing .*e-j59PqJjSM_50_98\.avi"):
        build_manifest(msvd)
    (error,) = build_manifest(replace(msvd, max_missing_fraction=0.25)).errors.to_pylist()
    assert (error["video_id"], error["reason"]) == ("e-j59PqJjSM_50_98", "missing")
    assert error["message"].startswith("test video: no file at")


def python_2_pickle(value: Any) -> bytes:
    """``value`` as Python 2 pickles it by default: instructions in ASCII, texts as byte strings."""
    if isinstance(value, dict):
        return b"(d" + b"".join(python_2_pickle(key) + python_2_pickle(item) + b"s" for key, item in value.items())
    if isinstance(value, list):
        return b"(l" + b"".join(python_2_pickle(item) + b"a" for item in value)
    return b"S" + repr(value if isinstance(value, bytes) else value.encode()).removeprefix("b").encode() + b"\n"


def test_pickles_of_python_2_say_the_same(msvd: DataConfig) -> None:
    words = {video: [text.split() for text in texts] for video, texts in CAPTIONS.items()}
    content = python_2_pickle(words) + b"."
    assert b"e-j59PqJjSM_50_98" in next(iter(reversed(pickle.loads(content, encoding="bytes"))))
    captions_file(msvd).write_bytes(content)
    assert captions_of(msvd) == CAPTIONS
    words["mv89psg6zh4_33_46"].append([b"caf\xe9"])
    captions_file(msvd).write_bytes(python_2_pickle(words) + b".")
    assert captions_of(msvd) == CAPTIONS
    assert any("1 captions are empty or not in UTF-8" in warning for warning in build_manifest(msvd).warnings)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_a_malicious_pickle_is_refused_and_does_nothing(msvd: DataConfig, tmp_path: Path) -> None:
    captions_file(msvd).write_bytes(pickle.dumps({"video": [[Malicious(tmp_path / "trace")]]}))
    with pytest.raises(ValueError, match=r"raw-captions\.pkl: not a pickle of plain data: it names '.*system'"):
        build_manifest(msvd)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pickle of plain data"),
        (pickle.dumps([["a", "man"]]), "no attribute 'items'"),
        (pickle.dumps({"v": ["a man"]}), "a caption is a str, not a list of words"),
        (pickle.dumps({"v": [["a", 3]]}), "'3' is a int, not a text"),
        (pickle.dumps({7: [["a"]]}), "'7' is a int, not a text"),
        (pickle.dumps({"v": None}), "not iterable"),
    ],
)
def test_other_pickles_are_refused_with_the_form_that_is_needed(msvd: DataConfig, content: bytes, message: str) -> None:
    captions_file(msvd).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"raw-captions\.pkl: .*{message}.*; the published form is a pickled dictionary"
    ):
        build_manifest(msvd)


@pytest.mark.parametrize("name", ["train_list.txt", "val_list.txt", "test_list.txt", "raw-captions.pkl"])
def test_absent_annotation_files_are_named_and_present_ones_are_digested(msvd: DataConfig, name: str) -> None:
    digest = manifest_digest(msvd)
    file = captions_file(msvd).with_name(name)
    file.write_bytes(file.read_bytes() + b"\n")
    assert manifest_digest(msvd) != digest
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {name}; set data.annotations to the folder of MSVD's"):
        build_manifest(msvd)


def test_unusable_lists_are_refused(msvd: DataConfig) -> None:
    listed = captions_file(msvd).with_name("train_list.txt")
    listed.write_bytes("\ufeff-4wsuPCjDBc_5_15\r\n\r\n-4wsuPCjDBc_5_15\n".encode())
    assert build_manifest(msvd).table.column("split").to_pylist() == ["train", "val", "test"]
    listed.write_text("e-j59PqJjSM_50_98\n")
    with pytest.raises(ValueError, match=r"train_list\.txt and test_list\.txt share 1 videos"):
        build_manifest(msvd)
    listed.write_text("../../etc/passwd\n")
    with pytest.raises(ValueError, match=r"train_list\.txt: video_id '../../etc/passwd' is not allowed"):
        build_manifest(msvd)
    listed.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"train_list\.txt: .*one video id per line"):
        build_manifest(msvd)
