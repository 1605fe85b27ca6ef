"""Paths are taken as they are written; addresses in a store are URIs. Both whatever letters their names hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.models.folder import is_published_file
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import (
    absolute_uri,
    join_uri,
    last_name,
    parent_uri,
    path_below,
    printable,
    shown,
    split_options,
    suffix_of,
)

NAMES = ["a#b", "a?b", "what?", "100%", "a%20b", "a%23b", "a b", "a?b=c", "ü+&", "*[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_this_machine_is_the_one_with_that_name(tmp_path: Path, name: str) -> None:
    workspace = Storage(f"{tmp_path}/{name}")
    workspace.folder("frames", "0123").write_bytes("a/b.bin", b"1")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.bin")] == [f"{name}/frames/0123/a/b.bin"]
    assert workspace.place("a") == f"{tmp_path}/{name}/a"
    assert Storage(join_uri(workspace.uri, "frames/0123")).read_bytes("a/b.bin") == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_a_bucket_is_the_one_with_that_key(s3_bucket: str, tmp_path: Path, name: str) -> None:
    top = Storage(f"{s3_bucket}/{tmp_path.name}")
    workspace = Storage(join_uri(top.uri, name))
    workspace.folder("frames").write_bytes("b.bin", b"1")
    assert top.folders() == [name]
    assert resolve(workspace.uri)[1] == f"bucket/{tmp_path.name}/{name}"
    assert Storage(join_uri(workspace.uri, "frames")).files() == ["b.bin"]
    top.delete("")


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("a#b", "a#b"),
        ("a?b", "a?b"),
        ("a%23b", "a#b"),
        ("a%3Fb", "a?b"),
        ("a%3Fb=c", "a?b=c"),
        ("a%20b", "a b"),
        ("a b", "a b"),
        ("100%", "100%"),
        ("100%25", "100%"),
        ("a/?region=us-east-1", "a"),
        ("a#b?region=us-east-1", "a#b"),
    ],
)
def test_what_is_written_in_an_address_names_one_key(s3_bucket: str, written: str, key: str) -> None:
    assert resolve(f"{s3_bucket}/{written}")[1] == f"bucket/{key}"


def test_options_stay_at_the_end() -> None:
    base = "s3://key:secret@b/ws?region=x&endpoint_override=localhost%3A1"
    assert split_options(base) == ("s3://key:secret@b/ws", "?region=x&endpoint_override=localhost%3A1")
    assert join_uri(base, "a?b", "c") == ("s3://key:secret@b/ws/a%3Fb/c?region=x&endpoint_override=localhost%3A1")
    assert parent_uri(join_uri(base, "c")) == base
    assert Storage(base).folder("c").uri == join_uri(base, "c")
    assert (shown(join_uri(base, "c")), last_name(join_uri(base, "c d.MP4"))) == ("s3://b/ws/c", "c d.MP4")
    assert suffix_of("s3://b/list.csv?region=x") == ".csv"


@pytest.mark.parametrize("base", ["/tmp/a b#c", "s3://b/ws", "s3://b/ws?region=x&endpoint_override=http://h:1/a"])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_from_addresses_as_they_were_written(base: str, name: str) -> None:
    uri = join_uri(base, name, f"{name}.bin")
    assert (last_name(uri), last_name(parent_uri(uri))) == (f"{name}.bin", name)
    assert path_below(base, uri) == f"{name}/{name}.bin"
    assert is_published_file(uri)
    assert not is_published_file(parent_uri(uri))


def test_addresses_are_taken_apart_in_one_place() -> None:
    """Elsewhere names of listings are, which are no addresses."""
    root = Path(__file__).parents[3]
    patterns = (
        r"uri\w*(\([^)]*\))?\.r?(split|partition)\(",
        r"rsplit\([\"']/",
        r"uri\}/",
        r"startswith\([\"'](s3|gs|file):",
        r"[\"']://[\"'] in",
    )
    apart = re.compile("|".join(patterns))
    files = [path for room in ("pipelines", "jobs") for path in (root / room).rglob("*.py") if path.name != "uris.py"]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if apart.search(line)
    ]
    assert found == []


def test_paths_have_no_options(tmp_path: Path) -> None:
    assert split_options("/a?region=x") == ("/a?region=x", "")
    assert parent_uri("/what?/list#1.csv") == "/what?"
    assert (last_name("/what?/a%20b#1.Mp4"), suffix_of("/what?/a.b#1.Mp4")) == ("a%20b#1.Mp4", ".mp4")
    assert join_uri("/", "a") == "/a"


def test_a_file_address_is_another_way_to_write_a_path(tmp_path: Path) -> None:
    assert absolute_uri("file:///a%20b/c%23d/") == "/a b/c#d"
    assert absolute_uri("file://localhost/a#b?c") == "/a#b?c"
    Storage(f"file://{tmp_path}/a b#c").write_bytes("x", b"1")
    assert (tmp_path / "a b#c" / "x").read_bytes() == b"1"
    for uri in ("file://host/a", "file://a"):
        with pytest.raises(ValueError, match="names the machine"):
            absolute_uri(uri)


def test_what_names_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="names no bucket"):
        Storage("s3://")
    with pytest.raises(ValueError, match="null character"):
        resolve("/a\0b")
    with pytest.raises(ValueError, match="is not UTF-8"):
        resolve("/caf\udce9")


def test_a_name_in_another_encoding_can_be_printed() -> None:
    assert printable("/a/caf\udce9.mp4") == r"/a/caf\udce9.mp4"
    assert printable("/ü") == "/ü"
