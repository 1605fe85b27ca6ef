from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.captions_file import read_captions_file
from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.datasets.record_files import MAX_LINE_CHARS
from pipelines.recipe.data import DataConfig

WriteFile = Callable[..., str]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Writes the captions file, and an empty file for each of its relative paths."""

    def write(text: str, *, name: str = "captions.csv", videos: tuple[str, ...] = ("a.mp4", "b.mp4", "c d.mp4")) -> str:
        for video in videos:
            (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / video).touch()
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_lines_of_a_video_are_merged_in_order(write_file: WriteFile) -> None:
    file = write_file('path,caption,split\na.mp4,one,train\nb.mp4,"two, three",test\na.mp4,  four   five ,train\n')
    first, second = read_captions_file(file).videos
    assert (first.captions, first.split) == (["one", "four five"], "train")
    assert (second.captions, second.split) == (["two, three"], "test")
    assert first.file is not None
    assert first.uri == file.replace("captions.csv", "a.mp4")


def test_json_lines_say_the_same_as_csv(write_file: WriteFile) -> None:
    records: list[dict[str, Any]] = [
        {"path": "a.mp4", "caption": "eins ü", "split": "train", "start_s": 1.5, "end_s": 3},
        {"path": "c d.mp4", "caption": "zwei", "split": "test", "start_s": None, "end_s": None},
    ]
    lines = "\n".join(map(json.dumps, records)) + "\n\n"
    rows = "\n".join(
        f"{r['path']},{r['caption']},{r['split']},{r['start_s'] or ''},{r['end_s'] or ''}" for r in records
    )
    from_json = read_captions_file(write_file(lines, name="captions.jsonl"))
    from_csv = read_captions_file(write_file(f"\ufeffpath,caption,split,start_s,end_s\n{rows}\n", videos=()))
    assert from_json.videos == from_csv.videos
    assert (from_json.videos[0].start_s, from_json.videos[0].end_s) == (1.5, 3.0)


def test_segments_of_a_file_are_videos_of_their_own(write_file: WriteFile) -> None:
    file = write_file("path,caption,split,start_s,end_s\na.mp4,x,train,0,2\na.mp4,y,train,2,4\na.mp4,z,train,0,2\n")
    videos = read_captions_file(file).videos
    assert [(video.captions, video.start_s, video.end_s) for video in videos] == [(["x", "z"], 0, 2), (["y"], 2, 4)]
    assert len({video.video_id for video in videos}) == 2


def test_derived_ids_are_safe_and_do_not_depend_on_other_lines(write_file: WriteFile) -> None:
    alone = read_captions_file(write_file("path,caption\nc d.mp4,x\n")).videos[0].video_id
    among = read_captions_file(write_file("path,caption\na.mp4,y\nc d.mp4,x\n")).videos[1].video_id
    assert alone == among
    assert alone.startswith("c_d-")


def test_absolute_paths_and_another_folder_work(write_file: WriteFile, tmp_path: Path) -> None:
    file = write_file(f"path,caption\n{tmp_path}/a.mp4,x\nsub/b.mp4,y\n", videos=("a.mp4", "store/sub/b.mp4"))
    videos = read_captions_file(file, str(tmp_path / "store")).videos
    assert [video.uri for video in videos] == [f"{tmp_path}/a.mp4", f"{tmp_path}/store/sub/b.mp4"]
    assert all(video.file is not None for video in videos)


def test_a_path_from_the_home_folder_is_absolute(
    write_file: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = write_file("path,caption\n~/a.mp4,x\n~b.mp4,y\n", videos=("home/a.mp4", "~b.mp4"))
    assert [video.uri for video in read_captions_file(file).videos] == [f"{tmp_path}/home/a.mp4", f"{tmp_path}/~b.mp4"]


def test_without_splits_a_tenth_is_tested_with_and_segments_stay_together(write_file: WriteFile) -> None:
    names = tuple(f"v{i}.mp4" for i in range(100))
    lines = [f"{name},caption,{start},{start + 1}" for name in names for start in (0, 1)]
    annotations = read_captions_file(write_file("path,caption,start_s,end_s\n" + "\n".join(lines), videos=names))
    by_file: dict[str, set[str]] = {}
    for video in annotations.videos:
        by_file.setdefault(video.uri, set()).add(video.split)
    assert all(len(splits) == 1 for splits in by_file.values())
    tested = sum(splits == {"test"} for splits in by_file.values())
    # A hash decides each file alone: binomial around 10 of 100 with standard deviation 3.
    assert 1 <= tested <= 22
    assert any("chosen by a hash" in warning for warning in annotations.warnings)


def test_even_two_videos_give_a_test_split(write_file: WriteFile) -> None:
    videos = read_captions_file(write_file("path,caption\na.mp4,x\nb.mp4,y\n")).videos
    assert sorted(video.split for video in videos)[0] == "test"


def test_oddities_are_counted(write_file: WriteFile) -> None:
    file = write_file("path,caption,split,note\na.mp4,x,train,1\na.mp4,,train,2\na.mp4,x,train,3\nb.mp4, ,train,4\n")
    annotations = read_captions_file(file)
    warnings = "\n".join(annotations.warnings)
    assert "1 unknown columns are ignored: note" in warnings
    assert "2 lines have an empty caption" in warnings
    assert "1 captions repeat" in warnings
    assert "no video has the split test" in warnings
    assert len(annotations.videos) == 1


def test_a_file_in_two_splits_is_warned_of(write_file: WriteFile) -> None:
    file = write_file("path,caption,split,start_s\na.mp4,x,train,0\na.mp4,y,test,5\n")
    assert any("more than one split" in warning for warning in read_captions_file(file).warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,caption,split\na.mp4,x,training\n", "line 2: split 'training' is unknown"),
        ("path,caption,spilt\na.mp4,x,train\n", "did you mean 'split'"),
        ("path,text\na.mp4,x\n", "it needs caption and one of path and uri"),
        ("path,uri,caption\na.mp4,a.mp4,x\n", "one of path and uri"),
        ("path,caption\n,x\n", "line 2: path .* is empty"),
        ("path,caption\na.mp4,x,y\n", "number of fields differs"),
        ("path,caption\na.mp4\n", "number of fields differs"),
        ("path,caption\n../a.mp4,x\n", "leaves the folder"),
        ("uri,caption\nnope://b/a.mp4,x\n", "cannot open 'nope://b/a.mp4'"),
        ("path,caption,video_id\na.mp4,x,../etc\n", "video_id '../etc' is not allowed"),
        ("path,caption,video_id\na.mp4,x,v\nb.mp4,y,v\n", "line 3: video_id 'v' means another file"),
        ("path,caption,split\na.mp4,x,train\na.mp4,y,test\n", "split test here and train on line 2"),
        ("path,caption,split\na.mp4,x,train\nb.mp4,y,\n", "some lines name a split and others do not"),
        ("path,caption,start_s\na.mp4,x,later\n", "start_s is 'later'"),
        ("path,caption,start_s\na.mp4,x,nan\n", "start_s is nan"),
        ("path,caption,start_s\na.mp4,x,-1\n", "start_s is -1"),
        ("path,caption,start_s,end_s\na.mp4,x,5,5\n", "end_s 5 is not after start_s 5"),
        ("path,caption\n", "holds no captions"),
        ("", "it needs caption"),
        ("path,caption\na.mp4," + "x" * (MAX_LINE_CHARS + 1), "more than 1,000,000 characters"),
    ],
)
def test_unusable_files_are_refused_with_the_line_and_the_rule(write_file: WriteFile, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_captions_file(write_file(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.mp4", "caption": "x"}\n{broken\n', "line 2 is not JSON"),
        ('["a.mp4", "x"]\n', "line 1 is a list"),
        ('{"path": "a.mp4", "caption": ["x"]}\n', "caption is a list"),
    ],
)
def test_unusable_json_lines_are_refused(write_file: WriteFile, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_captions_file(write_file(text, name="captions.jsonl"))


def test_all_problems_are_told_at_once(write_file: WriteFile) -> None:
    lines = "\n".join(f"a.mp4,x,{-number}" for number in range(1, 9))
    with pytest.raises(ValueError, match=r"line 2: (.|\n)*line 6: (.|\n)*and 3 more"):
        read_captions_file(write_file(f"path,caption,start_s\n{lines}\n"))


def test_other_encodings_and_suffixes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path,caption\na.mp4,ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_captions_file(str(tmp_path / "latin.csv"))
    with pytest.raises(ValueError, match=r"needs a \.csv or \.jsonl file"):
        read_captions_file(str(tmp_path / "captions.xlsx"))


def test_the_manifest_reports_missing_files_and_its_digest_follows_every_file(
    write_file: WriteFile, tmp_path: Path
) -> None:
    file = write_file("path,caption,split\na.mp4,x,train\nb.mp4,y,test\ngone.mp4,z,train\n")
    config = DataConfig(dataset="captions_file", annotations=file, validation_videos=0, max_missing_fraction=0.5)
    manifest = build_manifest(config)
    assert manifest.table.column("split").to_pylist() == ["train", "test"]
    assert manifest.errors.column("reason").to_pylist() == ["missing"]
    before = manifest_digest(config)
    (tmp_path / "b.mp4").write_bytes(b"changed")
    assert manifest_digest(config) != before
