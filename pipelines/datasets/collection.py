"""The manifest of a collection of videos without captions, which is given as a folder, a glob, a list or one file.

    /videos               every video below the folder, by its suffix
    '/videos/**/cat*'     those whose path fits: * and ? stay in a folder, ** crosses folders
    list.csv, list.jsonl  a column path or uri, and optionally video_id, start_s, end_s
    manifest.parquet      the manifest of a run of the pipeline
    clip.mp4              one video

Each may be a local path or a URI.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipelines.datasets.own_files import derived_id, video_address
from pipelines.datasets.record_files import Problems, Record, RecordFormat, read_records, seconds_of, text_of
from pipelines.datasets.video_files import (
    NO_FILE,
    VIDEO_SUFFIXES,
    VideoFile,
    check_video_id,
    find_files,
    list_videos,
    video_key,
)
from pipelines.workspace.errors import examples
from pipelines.workspace.records import ERRORS, MANIFEST
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import (
    absolute_uri,
    is_local,
    is_path,
    join_uri,
    last_name,
    parent_uri,
    printable,
    shown,
    split_options,
    suffix_of,
)

logger = logging.getLogger(__name__)

_WILDCARD = re.compile(r"[*?\[]")
_SET = re.compile(r"\[[^\]/]+\]")

_LIST = RecordFormat(
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
        # No key is empty, so the empty line shows where the keys end and the missing videos begin.
        keys = [*sorted(self.table.column("key").to_pylist()), "", *sorted(self.errors.column("uri").to_pylist())]
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def find_collection(videos: str) -> Collection:
    """The videos that ``videos`` names (see the head of this module), by id.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it names no video, or a list that is not valid.
    """
    suffix = suffix_of(videos)
    if suffix == ".parquet":
        found = _read_manifest(videos)
    elif suffix in (".csv", ".jsonl"):
        found = _read_list(videos)
    else:
        # The name of a folder, or a glob such as *.mp4, may end in a suffix of videos, too.
        one = _one_file(videos) if suffix in VIDEO_SUFFIXES else None
        found = one if one is not None else _listed(videos)
    if not len(found.table):
        why = examples(found.errors.column("message").to_pylist(), separator="; ")
        raise ValueError(
            f"{printable(shown(videos))} names no video{f': {why}' if why else ''}; give a folder, a "
            "glob in quotes, a list (.csv, .jsonl, manifest.parquet) or a file that ends in "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return found


def folder_of_collection(videos: str) -> str:
    """The folder below which the videos of a collection lie, according to its name."""
    folder, _ = _split_glob(videos)
    is_file = suffix_of(folder) in {".parquet", ".csv", ".jsonl", *VIDEO_SUFFIXES}
    return parent_uri(folder) if is_file else absolute_uri(folder)


def _one_file(videos: str) -> Collection | None:
    uri = absolute_uri(videos)
    file = find_files([uri]).files.get(uri)
    return None if file is None else _tables([_row(derived_id(last_name(uri)), file)], [])


def _listed(videos: str) -> Collection:
    """Every video below a folder, or those that fit a glob."""
    folder, pattern = _split_glob(videos)
    if not Storage(folder).exists(""):
        raise FileNotFoundError(
            f"{shown(videos)}: there is no folder {shown(folder)}; give a folder, a glob, a list or a video"
        )
    # In an address %20 stands for a space, and the listing has the space; a path is taken as it is written.
    fits = re.compile(_as_regex(pattern, literal=str if is_path(videos) else unquote)).fullmatch
    listing = list_videos(folder)
    for trouble in listing.troubles():
        logger.warning("%s", trouble)
    rows = [
        _row(derived_id(path), file)
        for path, file in sorted(listing.files.items())
        if suffix_of(path) in VIDEO_SUFFIXES and fits(path)
    ]
    # The contents of a closed folder are unknown. It is reported if a file a.mp4 in it would fit the glob.
    reasons = {path: f"cannot list the folder: {why}" for path, why in listing.closed.items() if fits(f"{path}/a.mp4")}
    reasons |= {path: why for path, why in listing.unusable.items() if suffix_of(path) in VIDEO_SUFFIXES and fits(path)}
    missing = [
        _Missing(derived_id(path), printable(join_uri(folder, path)), why) for path, why in sorted(reasons.items())
    ]
    return _tables(rows, missing)


def _split_glob(videos: str) -> tuple[str, str]:
    """The folder in front of the first wildcard, and the pattern of paths below it."""
    # The options of a store begin with a question mark, which is not a wildcard.
    address, options = split_options(videos)
    found = _WILDCARD.search(address)
    # The name of a local folder may look like a pattern.
    if found is None or (is_local(videos) and Path(absolute_uri(videos)).exists()):
        return videos, "**"
    # Without a slash in front of the wildcard, the glob is one below the current folder.
    cut = address.rfind("/", 0, found.start())
    folder = address[:cut] if cut > 0 else "/" if cut == 0 else "."
    return f"{folder}{options}", address[cut + 1 :]


def _as_regex(pattern: str, literal: Callable[[str], str]) -> str:
    """``literal`` turns the parts between wildcards into the characters of a path."""
    # The longer wildcards come first: "**" would take the beginning of "**/", and "*" that of both.
    parts = re.split(rf"(\*\*/|\*\*|\*|\?|{_SET.pattern})", pattern)
    # "**/" also stands for no folder at all: /videos/**/a.mp4 finds /videos/a.mp4.
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part) or (_set_as_regex(part) if _SET.fullmatch(part) else re.escape(literal(part))) for part in parts
    )


def _set_as_regex(part: str) -> str:
    # Shells negate a set with "!", and most with "^", too. The last two characters of what translate returns stand for
    # the end of the text.
    return fnmatch.translate(re.sub(r"^\[\^", "[!", part))[:-2]


@dataclass(frozen=True, slots=True)
class _Line:
    video_id: str
    uri: str
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True, slots=True)
class _Missing:
    video_id: str
    uri: str
    why: str


def _read_list(videos: str) -> Collection:
    file = absolute_uri(videos)
    problems, warnings = Problems(file), list[str]()
    base = parent_uri(file)
    lines: dict[str, _Line] = {}
    for number, record in read_records(file, _LIST, warnings):
        try:
            line = _parse(record, base)
            # A list of captions names a video on several lines, which must then agree.
            other = lines.setdefault(line.video_id, line)
            if other != line:
                raise ValueError(f"video_id {line.video_id!r} means {other.uri} on an earlier line; give it another id")
        except ValueError as error:
            # Problems writes the number of the line in front of it, which says the place.
            problems.add(number, str(error).removeprefix("this line: "))
    problems.raise_if_any()
    for warning in warnings:
        logger.warning("%s", warning)
    return _of_lines(list(lines.values()))


def _of_lines(lines: Sequence[_Line]) -> Collection:
    found = find_files(sorted({line.uri for line in lines}))
    rows = [
        _row(line.video_id, found.files[line.uri], line.start_s, line.end_s)
        for line in lines
        if line.uri in found.files
    ]
    missing = [
        _Missing(line.video_id, printable(line.uri), found.reasons.get(line.uri, NO_FILE))
        for line in lines
        if line.uri not in found.files
    ]
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
    names = ("video_id", "uri", "start_s", "end_s")
    lines = [
        _Line(*(row[name] for name in names))
        for row in _manifest_rows(Storage(parent_uri(file)), last_name(file), names)
    ]
    for line in lines:
        check_video_id(line.video_id, file)
    return _of_lines(lines)


def _manifest_rows(folder: Storage, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    table = folder.read_table(name, columns=columns)
    # Any Parquet file may have columns of these names.
    wanted = pa.schema([MANIFEST.field(column) for column in columns])
    if table.schema.types != wanted.types:
        raise ValueError(f"{folder.place(name)} is not a manifest of this project: its columns have other types")
    yield from table.to_pylist()


def _row(video_id: str, file: VideoFile, start_s: float | None = None, end_s: float | None = None) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "uri": file.uri,
        "key": video_key(video_id, file, start_s, end_s),
        "start_s": start_s,
        "end_s": end_s,
        # A collection has no splits, but the schema of a manifest needs one.
        "split": "test",
        "captions": [],
        "questions": [],
    }


def _tables(rows: Sequence[dict[str, Any]], missing: Sequence[_Missing]) -> Collection:
    errors = [
        {
            "video_id": line.video_id,
            "uri": line.uri,
            "stage": "manifest",
            "reason": "missing",
            "message": f"no file at {line.uri}" if line.why == NO_FILE else f"cannot use {line.uri}: {line.why}",
        }
        for line in missing
    ]
    ordered = sorted(rows, key=lambda row: str(row["video_id"]))
    return Collection(pa.Table.from_pylist(ordered, schema=MANIFEST), pa.Table.from_pylist(errors, schema=ERRORS))
