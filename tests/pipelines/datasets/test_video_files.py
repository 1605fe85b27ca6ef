"""Names of video files and ids: what is the same video, and what is harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.datasets.video_files import check_video_id, list_videos, video_stem


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
