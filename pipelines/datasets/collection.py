"""A collection of videos without captions: a folder, a glob, a list or one file becomes a manifest.

    /videos               every video below the folder, by its suffix
    '/videos/**/cat*'     those whose path fits: * and ? stay in a folder, ** crosses folders
    list.csv, list.jsonl  a column path or uri, and optionally video_id, start_s, end_s
    manifest.parquet      the manifest of a run of the pipeline
    clip.mp4              one video

Each may be a local path or a URI.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.datasets.annotations import examples
from pipelines.datasets.line_files import (
    LineFormat,
    Problems,
    Record,
    derived_id,
    folder_of,
    read_records,
    seconds_of,
    text_of,
    video_address,
)
from pipelines.datasets.video_files import VIDEO_SUFFIXES, VideoFile, check_video_id, find_files, list_videos, video_key
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.records import ERRORS, MANIFEST
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri

logger = logging.getLogger(__name__)

_WILDCARD = re.compile(r"[*?\[]")

_LIST = LineFormat(
    setting="videos",
    columns=("path", "uri", "video_id", "start_s", "end_s", "caption", "question", "answer", "type", "split", "video"),
    needs="one of path and uri",
    is_complete=lambda columns: ("path" in columns) != ("uri" in columns),
)
"""Lists of captions are lists of videos, too."""


@dataclass(frozen=True, slots=True)
class Collection:
    """The videos that were found, as ``records.MANIFEST``, and those that are missing, as ``records.ERRORS``."""

    table: pa.Table
    errors: pa.Table

    def digest(self) -> str:
        """Changes when a video is added, removed or changed."""
        keys = [*sorted(self.table.column("key").to_pylist()), "", *sorted(self.errors.column("uri").to_pylist())]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def find_collection(videos: str) -> Collection:
    """The videos that ``videos`` names (see the head of this module), by id.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it names no video, or a list that cannot be used.
    """
    name = videos.partition("?")[0] if "://" in videos else videos
    suffix = posixpath.splitext(name)[1].lower()
    if suffix == ".parquet":
        found = _read_manifest(videos)
    elif suffix in (".csv", ".jsonl"):
        found = _read_list(videos)
    else:
        files = _one_file(videos) if suffix in VIDEO_SUFFIXES else None
        found = _collection(files if files is not None else _listed(videos))
    if not len(found.table):
        missing = examples(found.errors.column("uri").to_pylist())
        raise ValueError(
            f"{videos} names no video{f': {missing} are missing' if missing else ''}; give a folder, a glob in quotes, "
            f"a list (.csv, .jsonl, manifest.parquet) or a file that ends in {', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return found


def folder_of_collection(videos: str) -> str:
    """The folder below which the videos of a collection lie, as far as its name tells."""
    folder, _ = _split_glob(videos)
    suffix = posixpath.splitext(folder.partition("?")[0])[1].lower()
    return folder_of(folder) if suffix in {".parquet", ".csv", ".jsonl", *VIDEO_SUFFIXES} else folder


def _one_file(videos: str) -> list[tuple[str, VideoFile]] | None:
    filesystem, path = resolve(videos)
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    uri = absolute_uri(videos)
    return [(posixpath.basename(path), find_files([uri])[uri])]


def _listed(videos: str) -> list[tuple[str, VideoFile]]:
    """Relative path and file of every video below a folder, or of those that fit a glob."""
    folder, pattern = _split_glob(videos)
    if not Storage(folder).exists(""):
        raise FileNotFoundError(f"{videos}: there is no folder {folder}; give a folder, a glob, a list or a video")
    fits = re.compile(_as_regex(pattern)).fullmatch
    return [
        (path, file)
        for path, file in sorted(list_videos(folder).files.items())
        if posixpath.splitext(path)[1].lower() in VIDEO_SUFFIXES and fits(path)
    ]


def _split_glob(videos: str) -> tuple[str, str]:
    """The folder in front of the first wildcard, and the pattern of paths below it."""
    # In a URI the first question mark begins the options of the store, so it is no wildcard there.
    address, mark, options = videos.partition("?") if "://" in videos else (videos, "", "")
    if not (found := _WILDCARD.search(address)):
        return videos, "**"
    cut = address.rfind("/", 0, found.start())
    folder = address[:cut] if cut > 0 else "/" if cut == 0 else "."
    return f"{folder}{mark}{options}", address[cut + 1 :]


def _as_regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part) or (part.replace("[!", "[^") if part.startswith("[") and len(part) > 2 else re.escape(part))
        for part in parts
    )


def _collection(files: Sequence[tuple[str, VideoFile]]) -> Collection:
    rows = [_row(derived_id(path), file) for path, file in files]
    return _tables(rows, [])


@dataclass(frozen=True, slots=True)
class _Line:
    video_id: str
    uri: str
    start_s: float | None
    end_s: float | None


def _read_list(videos: str) -> Collection:
    file = absolute_uri(videos)
    problems, warnings = Problems(file), list[str]()
    base = folder_of(file)
    lines: dict[str, _Line] = {}
    for number, record in read_records(file, _LIST, warnings):
        try:
            line = _parse(record, base)
            other = lines.setdefault(line.video_id, line)
            if other != line:
                raise ValueError(f"video_id {line.video_id!r} means {other.uri} on an earlier line; give it another id")
        except ValueError as error:
            problems.add(number, str(error).removeprefix("this line: "))
    problems.raise_if_any()
    for warning in warnings:
        logger.warning("%s", warning)
    found = find_files(sorted({line.uri for line in lines.values()}))
    rows, missing = [], []
    for line in lines.values():
        if line.uri in found:
            rows.append(_row(line.video_id, found[line.uri], line.start_s, line.end_s))
        else:
            missing.append(line)
    return _tables(rows, missing)


def _parse(record: Record, base: str) -> _Line:
    address = text_of(record, "path") or text_of(record, "uri")
    if not address:
        raise ValueError("path (or uri) is empty")
    start_s, end_s = seconds_of(record, "start_s"), seconds_of(record, "end_s")
    if end_s is not None and end_s <= (start_s or 0):
        raise ValueError(f"end_s {end_s:g} is not after start_s {start_s or 0:g}")
    video_id = text_of(record, "video_id") or derived_id(address, start_s, end_s)
    return _Line(check_video_id(video_id, "this line"), video_address(address, base), start_s, end_s)


def _read_manifest(videos: str) -> Collection:
    file = absolute_uri(videos)
    folder, _, name = file.rpartition("/")
    names = ("video_id", "uri", "start_s", "end_s")
    lines = [_Line(*(row[name] for name in names)) for row in _manifest_rows(Storage(folder), name, names)]
    for line in lines:
        check_video_id(line.video_id, file)
    found = find_files(sorted({line.uri for line in lines}))
    rows = [_row(line.video_id, found[line.uri], line.start_s, line.end_s) for line in lines if line.uri in found]
    return _tables(rows, [line for line in lines if line.uri not in found])


def _manifest_rows(folder: Storage, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    table = folder.read_table(name, columns=columns)
    wanted = pa.schema([MANIFEST.field(column) for column in columns])
    if table.schema.types != wanted.types:
        raise ValueError(f"{folder.place(name)} is no manifest of this project: its columns have other types")
    yield from table.to_pylist()


def _row(video_id: str, file: VideoFile, start_s: float | None = None, end_s: float | None = None) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "uri": file.uri,
        "key": video_key(video_id, file, start_s, end_s),
        "start_s": start_s,
        "end_s": end_s,
        "split": "test",
        "captions": [],
        "questions": [],
    }


def _tables(rows: Sequence[dict[str, Any]], missing: Sequence[_Line]) -> Collection:
    errors = [
        {
            "video_id": line.video_id,
            "uri": line.uri,
            "stage": "manifest",
            "reason": "missing",
            "message": f"no file at {line.uri}",
        }
        for line in missing
    ]
    ordered = sorted(rows, key=lambda row: str(row["video_id"]))
    return Collection(pa.Table.from_pylist(ordered, schema=MANIFEST), pa.Table.from_pylist(errors, schema=ERRORS))
