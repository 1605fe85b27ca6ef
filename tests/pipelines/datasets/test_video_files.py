"""Names of video files and ids: what is the same video, and what is harmless."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from pipelines.datasets.manifest import build_manifest, manifest_digest
from pipelines.datasets.video_files import NO_FILE, check_video_id, find_files, list_videos, video_stem
from pipelines.recipe.data import DataConfig
from pipelines.workspace.errors import StorageError
from pipelines.workspace.uris import printable
from tests.dataset_copies import write_msrvtt


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("x", "x"),
        ("x.mp4", "x"),
        ("x.AVI", "x"),
        ("x.mov.mp4", "x"),
        ("x.3gp.m4v.mkv", "x"),
        ("12345678@N00_1234567890_abcdef1234.mov", "12345678@N00_1234567890_abcdef1234"),
        ("-4wsuPCjDBc_5_15.avi", "-4wsuPCjDBc_5_15"),
        ("a.b.mp4", "a.b"),
        ("x.jpg", "x.jpg"),
        ("x.mp4.part", "x.mp4.part"),
        ("x.mp4 ", "x.mp4 "),
        (".mp4", ".mp4"),
        ("", ""),
    ],
)
def test_suffixes_of_videos_and_no_others_are_left_out(name: str, stem: str) -> None:
    assert video_stem(name) == stem


def test_a_folder_is_searched_by_stem(tmp_path: Path) -> None:
    for name in ("a.mp4", "deep/er/b", "deep/c.mov.MP4", "c.txt", "._a.mp4", ".hidden/a.avi", "a.mp4.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    stems = list_videos(str(tmp_path)).by_stem()
    assert {stem: [Path(file.uri).name for file in files] for stem, files in stems.items()} == {
        "a": ["a.mp4"],
        "b": ["b"],
        "c": ["c.mov.MP4"],
        "c.txt": ["c.txt"],
        "a.mp4.part": ["a.mp4.part"],
    }


@pytest.mark.parametrize(
    "video_id", ["video0", "-4wsuPCjDBc_5_15", "v_--1DO2V4K74", "12345678@N00_1234567890_abcdef1234.mov", "a" * 128]
)
def test_published_ids_are_allowed(video_id: str) -> None:
    assert check_video_id(video_id, "list.txt") == video_id


@pytest.mark.parametrize(
    "video_id",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "../a",
        "a b",
        "a\n",
        "a\x1b[2J",
        "<b>",
        'a"',
        "a'",
        "a&b",
        "a%2Fb",
        "a;b",
        "ä",
        "a" * 129,
    ],
)
def test_other_ids_are_refused(video_id: str) -> None:
    with pytest.raises(ValueError, match=r"list\.txt: video_id .* is not allowed") as refused:
        check_video_id(video_id, "list.txt")
    assert str(refused.value).isprintable()


def test_a_listing_says_what_arrow_says(tmp_path: Path) -> None:
    """Keys of frames that were decoded before hold size and time of change as Arrow gave them."""
    for name in ("a.mp4", "deep/b#1.mp4", "deep/er/c?%20.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "deep", target_is_directory=True)
    listed = pafs.LocalFileSystem().get_file_info(pafs.FileSelector(str(tmp_path), recursive=True))
    expected = {info.path: (info.size, info.mtime_ns) for info in listed if info.type == pafs.FileType.File}
    found = list_videos(str(tmp_path))
    assert {file.uri: (file.size, file.mtime_ns) for file in found.files.values()} == expected
    assert len(expected) == 5
    assert find_files(sorted(expected)).files == {file.uri: file for file in found.files.values()}


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.mp4").touch()
    (tmp_path / "deep" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert list(list_videos(str(tmp_path)).files) == ["deep/a.mp4"]


def test_a_name_in_another_encoding_costs_its_video(tmp_path: Path) -> None:
    for name in (b"caf\xe9.mp4", b"b\xe9/video1.mp4", b"video2.mp4"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = list_videos(str(tmp_path))
    assert list(found.files) == ["video2.mp4"]
    assert sorted(map(printable, found.unusable)) == [r"b\udce9/video1.mp4", r"caf\udce9.mp4"]
    assert found.reasons_by_stem()["video1"].startswith(r"b\udce9/video1.mp4: its path is not UTF-8")
    (trouble,) = found.troubles()
    assert r"2 files below" in trouble and r"caf\udce9.mp4 (its path is not UTF-8 text; rename it)" in trouble


def test_addresses_that_cannot_be_looked_at_cost_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    (tmp_path / "folder.mp4").mkdir()
    bad = {
        f"{tmp_path}/{'x' * 300}.mp4": "File name too long",
        f"{tmp_path}/{'x/' * 3000}a.mp4": "File name too long",
        f"{tmp_path}/circle.mp4": "Too many levels of symbolic links",
        f"{tmp_path}/folder.mp4": "it is not a file",
        f"{tmp_path}/a.mp4/b.mp4": "Not a directory",
        f"{tmp_path}/caf\udce9.mp4": "its path is not UTF-8 text; rename it",
        f"{tmp_path}/gone.mp4": NO_FILE,
    }
    found = find_files([*bad, f"{tmp_path}/a.mp4"])
    assert list(found.files) == [f"{tmp_path}/a.mp4"]
    assert found.reasons == bad


def test_a_captions_file_with_bad_names_is_read_without_them(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    lines = [{"path": path, "caption": "x", "split": "test"} for path in ("a.mp4", "caf\udce9.mp4", "x" * 300)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DataConfig(dataset="captions_file", annotations=str(tmp_path / "own.jsonl"), max_missing_fraction=0.9)
    manifest = build_manifest(config)
    assert len(manifest.table) == 1
    first, second = manifest.errors.to_pylist()
    assert first["uri"] == rf"{tmp_path}/caf\udce9.mp4"
    assert first["message"].endswith("its path is not UTF-8 text; rename it")
    assert second["message"].endswith("File name too long")
    assert manifest_digest(config) == manifest_digest(config)


def test_a_file_server_that_is_away_makes_no_video_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "a.mp4").touch()
    scandir, look = os.scandir, Path.stat

    def listing_as_if_away(folder: str) -> Any:
        if folder.endswith("/mounted"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return scandir(folder)

    def look_as_if_away(path: Path, **more: Any) -> Any:
        if path.name == "a.mp4":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(path, **more)

    monkeypatch.setattr(os, "scandir", listing_as_if_away)
    with pytest.raises(StorageError, match=r"cannot list .*Stale file handle"):
        list_videos(str(tmp_path))
    monkeypatch.setattr(Path, "stat", look_as_if_away)
    with pytest.raises(StorageError, match=r"cannot look at .*a\.mp4: Input/output error"):
        find_files([f"{tmp_path}/mounted/a.mp4"])


def published(tmp_path: Path, *names: str) -> DataConfig:
    """Three videos of MSR-VTT, and files of these names."""
    write_msrvtt(tmp_path / "set", train={"video0": ["one"], "video1": ["two"]}, test={"video2": "three"})
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return DataConfig(annotations=str(tmp_path / "set"), videos=str(tmp_path / "videos"), validation_videos=0)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["readme.txt"], r"3 of 3 videos are missing .*video0\.mp4.*videos holds 1 files, 0 of them named as videos"),
        (
            ["sub/Video0.mp4", "VIDEO1.MP4"],
            r"2 files, 2 of them.*capitals count: there is .*video1\.mp4 was looked for",
        ),
    ],
)
def test_where_no_video_is_found_what_is_there_is_said(tmp_path: Path, names: list[str], said: str) -> None:
    config = published(tmp_path, *names)
    for fraction in (0.05, 1.0):
        with pytest.raises(ValueError, match=said):
            build_manifest(replace(config, max_missing_fraction=fraction))


def test_capitals_and_suffixes_of_the_users_own_files_are_compared(tmp_path: Path) -> None:
    for name in ("a.MP4", "B.mp4", "c.mkv"):
        (tmp_path / name).touch()
    (tmp_path / "own.csv").write_text("path,caption\na.mp4,x\nb.mp4,y\nc.mp4,z\n")
    config = DataConfig(dataset="captions_file", annotations=str(tmp_path / "own.csv"))
    with pytest.raises(ValueError, match="3 of 3 videos are missing") as refused:
        build_manifest(config)
    for found, wanted in (("a.MP4", "a.mp4"), ("B.mp4", "b.mp4"), ("c.mkv", "c.mp4")):
        assert f"{found}, and {wanted} was looked for" in str(refused.value)
    (tmp_path / "b.mp4").touch()
    warnings = build_manifest(replace(config, max_missing_fraction=0.9)).warnings
    assert any("suffixes count" in warning and "a.MP4, and a.mp4" in warning for warning in warnings)


def test_files_without_any_caption_are_refused(tmp_path: Path) -> None:
    config = published(tmp_path, "video0.mp4")
    (tmp_path / "set" / "MSRVTT_data.json").write_text('{"sentences": []}')
    (tmp_path / "set" / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\n")
    with pytest.raises(ValueError, match=r"not one video has a caption .*MSRVTT_data\.json"):
        build_manifest(config)


@pytest.mark.parametrize("folder", ["a#b", "a?b=c", "100%25", "what?/x y"])
def test_folders_with_any_name_hold_a_data_set(tmp_path: Path, folder: str) -> None:
    config = published(tmp_path / folder, "video0.mp4", "video1.mp4", "sub#/video2.mp4")
    manifest = build_manifest(config)
    assert manifest.table.column("uri").to_pylist() == [
        f"{tmp_path}/{folder}/videos/{name}" for name in ("video0.mp4", "video1.mp4", "sub#/video2.mp4")
    ]
    own = tmp_path / folder / "own?#%20.csv"
    own.write_text("path,caption\nvideos/video0.mp4,x\nvideos/sub#/video2.mp4,y\n")
    manifest = build_manifest(DataConfig(dataset="captions_file", annotations=str(own)))
    assert len(manifest.table) == 2
    assert find_files(manifest.table.column("uri").to_pylist()).files.keys() == set(
        manifest.table.column("uri").to_pylist()
    )
