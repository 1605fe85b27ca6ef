"""What names a collection of videos, and what is in it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.datasets.collection import find_collection, folder_of_collection
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.MKV", "notes.txt", "deep/c.mp4", "deep/er/d.webm", "deep/.hidden/e.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def names(collection: str) -> list[str]:
    return sorted(Path(uri).name for uri in find_collection(collection).table.column("uri").to_pylist())


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("", ["a.mp4", "b.MKV", "c.mp4", "d.webm"]),
        ("/*", ["a.mp4", "b.MKV"]),
        ("/*.mp4", ["a.mp4"]),
        ("/**/*.mp4", ["a.mp4", "c.mp4"]),
        ("/deep/**", ["c.mp4", "d.webm"]),
        ("/[!a].*", ["b.MKV"]),
        ("/[^a].*", ["b.MKV"]),
        ("/[a-c].*", ["a.mp4", "b.MKV"]),
        ("/?.mp4", ["a.mp4"]),
        ("/deep/c.mp4", ["c.mp4"]),
    ],
)
def test_folders_globs_and_files_name_videos(videos: Path, place: str, found: list[str]) -> None:
    assert names(f"{videos}{place}") == found


@pytest.mark.parametrize("pattern", ["[z-a].mp4", r"[\].mp4", "[!]*"])
def test_a_set_that_no_file_fits_names_no_video(videos: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match="names no video"):
        find_collection(f"{videos}/{pattern}")


def test_the_address_of_a_file_has_escapes_and_its_path_has_none(videos: Path) -> None:
    for name in ("a b1.mp4", "a%20b2.mp4"):
        (videos / name).touch()
    assert names(f"file://{videos}/a%20b*.mp4") == ["a b1.mp4"]
    assert names(f"{videos}/a%20b*.mp4") == ["a%20b2.mp4"]


def test_ids_are_unique_harmless_and_do_not_move_with_the_folder(videos: Path, tmp_path: Path) -> None:
    (videos / "deep" / "a.mp4").write_bytes(b"another")
    before = find_collection(str(videos)).table.column("video_id").to_pylist()
    assert len(set(before)) == len(before) == 5
    videos.rename(tmp_path / "elsewhere")
    assert find_collection(str(tmp_path / "elsewhere")).table.column("video_id").to_pylist() == before


def test_the_digest_changes_with_the_videos_alone(videos: Path) -> None:
    before = find_collection(str(videos)).digest()
    (videos / "notes.txt").write_text("more")
    assert find_collection(str(videos)).digest() == before
    (videos / "new.mp4").write_bytes(b"new")
    assert find_collection(str(videos)).digest() != before


def test_a_list_names_videos_and_segments_and_its_missing_ones_are_errors(videos: Path) -> None:
    lines = ["path,video_id,start_s,end_s", "a.mp4,first,,", "deep/c.mp4,part,1.5,2", "gone.mp4,gone,,"]
    (videos / "list.csv").write_text("\n".join(lines) + "\n")
    found = find_collection(str(videos / "list.csv"))
    rows = {row["video_id"]: (Path(row["uri"]).name, row["start_s"], row["end_s"]) for row in found.table.to_pylist()}
    assert rows == {"first": ("a.mp4", None, None), "part": ("c.mp4", 1.5, 2.0)}
    (error,) = found.errors.to_pylist()
    assert (error["video_id"], error["stage"], error["reason"]) == ("gone", "manifest", "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,video_id\na.mp4,../x\n", r"line 2: video_id '\.\./x' is not allowed"),
        ("path\n../a.mp4\n", "leaves the folder of the videos"),
        ("path,video_id\na.mp4,x\nb.MKV,x\n", "line 3: video_id 'x' means .*a.mp4 on an earlier line"),
        ("path,start_s,end_s\na.mp4,2,1\n", "end_s 1 is not after start_s 2"),
        ("name\na.mp4\n", "it needs one of path and uri"),
        ("path\ngone.mp4\n", "names no video: no file at .*gone.mp4"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(videos: Path, content: str, message: str) -> None:
    (videos / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_collection(str(videos / "list.csv"))


def test_the_same_manifest_gives_the_same_videos(videos: Path) -> None:
    found = find_collection(str(videos))
    pq.write_table(found.table, videos / "manifest.parquet")
    assert find_collection(str(videos / "manifest.parquet")).table.equals(found.table)


def test_a_bad_name_costs_its_video_and_is_named(videos: Path) -> None:
    (videos / os.fsdecode(b"caf\xe9.mp4")).touch()
    (videos / os.fsdecode(b"notes\xe9.txt")).touch()
    (videos / "gone.mp4").symlink_to("nowhere")
    found = find_collection(str(videos))
    assert len(found.table) == 4
    odd, gone = found.errors.sort_by("uri").to_pylist()
    assert (odd["uri"], odd["reason"]) == (rf"{videos}/caf\udce9.mp4", "missing")
    assert odd["message"].endswith("its path is not UTF-8 text; rename it")
    assert gone["message"] == f"cannot use {videos}/gone.mp4: No such file or directory"
    assert find_collection(f"{videos}/deep/**").errors.num_rows == 0
    before = found.digest()
    (videos / "gone.mp4").unlink()
    assert find_collection(str(videos)).digest() != before


@pytest.mark.parametrize("name", ["a#b", "what?", "50%20", "[x]", "a*b"])
def test_a_folder_that_is_called_like_a_pattern_or_an_address_is_a_folder(
    videos: Path, tmp_path: Path, name: str
) -> None:
    place = tmp_path / name
    videos.rename(place)
    assert names(str(place)) == ["a.mp4", "b.MKV", "c.mp4", "d.webm"]
    assert names(f"{place}/deep/c.mp4") == ["c.mp4"]
    assert folder_of_collection(str(place)) == str(place)
    (place / "list #1?.csv").write_text("path\na.mp4\ndeep/c.mp4\n")
    assert names(f"{place}/list #1?.csv") == ["a.mp4", "c.mp4"]
    pq.write_table(find_collection(str(place)).table, place / "manifest.parquet")
    assert names(f"{place}/manifest.parquet") == ["a.mp4", "b.MKV", "c.mp4", "d.webm"]


@pytest.mark.slow
def test_patterns_in_a_bucket_name_keys(s3_bucket: str, tmp_path: Path) -> None:
    folder = Storage(f"{s3_bucket}/{tmp_path.name}")
    for name in ("a b1.mp4", "a b2.mp4", "a b22.mp4", "c#1.mp4", "what?.mp4"):
        folder.write_bytes(name, b"1")

    def found(pattern: str) -> list[str]:
        uris = find_collection(f"{folder.uri}/{pattern}").table.column("uri").to_pylist()
        return sorted(map(last_name, uris))

    assert found("a%20b?.mp4") == found("a b?.mp4") == ["a b1.mp4", "a b2.mp4"]
    assert found("c#*.mp4") == found("c%23*") == ["c#1.mp4"]
    assert found("what%3F.mp4") == ["what?.mp4"]
    assert len(found("")) == 5
    folder.delete("")


def test_nothing_there_is_an_error(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_collection(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="names no video; give a folder, a glob in quotes"):
        find_collection(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*x\.mp4"):
        find_collection(str(tmp_path / "empty" / "x.mp4"))


def test_the_folder_of_a_collection_is_what_workers_must_see() -> None:
    assert folder_of_collection("/v/**/*.mp4") == "/v"
    assert folder_of_collection("/v") == "/v"
    assert folder_of_collection("/v/list.csv") == "/v"
    assert folder_of_collection("s3://b/v/*.mp4?region=x") == "s3://b/v?region=x"
