"""The user's own videos: a CSV or JSONL file with one caption per line.

Columns: ``path`` or ``uri`` of the video, ``caption``, and optionally ``split`` (train, val,
test), ``video_id``, ``start_s``, ``end_s``. Lines of the same video, or of the same segment of it,
are merged. Without any split, a tenth of the files become the test split, by a hash of their
path, so that adding videos moves no other video.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.configs import SPLITS, Split
from pipelines.data.annotations import AnnotatedVideo, Annotations, examples
from pipelines.data.video_files import check_video_id, find_files, join_uri
from pipelines.storage import absolute_uri, is_local, resolve

COLUMNS = ("path", "uri", "caption", "split", "video_id", "start_s", "end_s")

TEST_FRACTION_PERCENT = 10
"""Percentage of files that become the test split where the captions file names no split."""

MAX_LINE_CHARS = 1_000_000
"""Longer lines are no captions; refusing them bounds the memory."""

_MAX_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the file, checked."""

    number: int
    uri: str
    video_id: str
    caption: str
    split: Split | None
    start_s: float | None
    end_s: float | None


@dataclass(slots=True)
class _Problems:
    """Collects what is wrong, so that one run tells all of it."""

    source: str
    messages: list[str] = field(default_factory=list)

    def add(self, number: int, message: str) -> None:
        self.messages.append(f"line {number}: {message}")

    def raise_if_any(self) -> None:
        if self.messages:
            shown = "\n  ".join(self.messages[:_MAX_PROBLEMS])
            more = len(self.messages) - _MAX_PROBLEMS
            tail = f"\n  and {more:,} more" if more > 0 else ""
            raise ValueError(f"{self.source} cannot be used:\n  {shown}{tail}")


def read_captions_file(file: str, videos: str | None = None) -> Annotations:
    """The videos and captions of ``file``.

    Args:
        file: path or URI of a ``.csv`` or ``.jsonl`` file in UTF-8.
        videos: folder at which relative paths start; the folder of ``file`` by default.

    Raises:
        ValueError: a line or column is not as required; the message lists the first of them all.
        FileNotFoundError: the captions file does not exist.
    """
    file = absolute_uri(file)
    base = videos if videos is not None else _parent(file)
    problems = _Problems(file)
    warnings: list[str] = []
    lines, num_empty = [], 0
    for number, record in _read_records(file, warnings):
        line = _parse(number, record, base, problems)
        if line is not None and line.caption:
            lines.append(line)
        elif line is not None:
            num_empty += 1
    _check_consistency(lines, problems)
    problems.raise_if_any()
    if not lines:
        raise ValueError(f"{file} holds no captions; it needs one line per caption with the columns path and caption")
    if num_empty:
        warnings.append(f"{num_empty:,} lines have an empty caption and are left out")
    entries = _merge(lines, warnings)
    return Annotations(videos=entries, warnings=warnings, files=(file,))


def _merge(lines: Sequence[_Line], warnings: list[str]) -> list[AnnotatedVideo]:
    by_id: dict[str, list[_Line]] = {}
    for line in lines:
        by_id.setdefault(line.video_id, []).append(line)
    splits = _splits(by_id, warnings)
    found = find_files(sorted({line.uri for line in lines}))
    entries = []
    num_repeated = 0
    for video_id, members in by_id.items():
        captions = list(dict.fromkeys(line.caption for line in members))
        num_repeated += len(members) - len(captions)
        first = members[0]
        entries.append(
            AnnotatedVideo(
                video_id=video_id,
                uri=first.uri,
                file=found.get(first.uri),
                split=splits[video_id],
                captions=captions,
                start_s=first.start_s,
                end_s=first.end_s,
            )
        )
    if num_repeated:
        warnings.append(f"{num_repeated:,} captions repeat another caption of their video and are left out")
    _warn_of_shared_files(entries, warnings)
    return entries


def _splits(by_id: Mapping[str, Sequence[_Line]], warnings: list[str]) -> dict[str, Split]:
    given = {video_id: members[0].split for video_id, members in by_id.items()}
    splits: dict[str, Split] = {video_id: split for video_id, split in given.items() if split is not None}
    if not splits:
        files = sorted({members[0].uri for members in by_id.values()}, key=_hash)
        # Segments of one file stay together: they look alike. At least one file can be tested with.
        tested = {uri for uri in files if int(_hash(uri)[:8], 16) % 100 < TEST_FRACTION_PERCENT} or {files[0]}
        for video_id, members in by_id.items():
            splits[video_id] = "test" if members[0].uri in tested else "train"
        num_tested = sum(split == "test" for split in splits.values())
        warnings.append(
            f"no line names a split: {num_tested:,} of {len(splits):,} videos become the test split, chosen by a hash "
            "of their files; add a column split (train, val, test) to choose yourself"
        )
    elif "test" not in splits.values():
        warnings.append("no video has the split test; set evaluation.split to val, or add test videos")
    return splits


def _warn_of_shared_files(entries: Iterable[AnnotatedVideo], warnings: list[str]) -> None:
    splits: dict[str, set[Split]] = {}
    for entry in entries:
        splits.setdefault(entry.uri, set()).add(entry.split)
    shared = [uri for uri, members in splits.items() if len(members) > 1]
    if shared:
        warnings.append(f"{len(shared):,} files have segments in more than one split: {examples(shared)}")


def _check_consistency(lines: Iterable[_Line], problems: _Problems) -> None:
    """An id must always mean the same segment of the same file in the same split."""
    first: dict[str, _Line] = {}
    splits_given: set[bool] = set()
    for line in lines:
        other = first.setdefault(line.video_id, line)
        if (line.uri, line.start_s, line.end_s) != (other.uri, other.start_s, other.end_s):
            problems.add(
                line.number,
                f"video_id {line.video_id!r} means another file or segment than on line {other.number}; "
                "give each segment an id of its own",
            )
        elif line.split != other.split:
            problems.add(
                line.number,
                f"video {line.video_id!r} has split {line.split} here and {other.split} on line {other.number}",
            )
        splits_given.add(line.split is not None)
        if len(splits_given) > 1:
            problems.add(line.number, "some lines name a split and others do not; name it on all lines or on none")
            return


def _parse(number: int, record: Mapping[str, Any], base: str, problems: _Problems) -> _Line | None:
    try:
        address = _text(record, "path") or _text(record, "uri")
        if not address:
            raise ValueError("path (or uri) is empty")
        uri = _address(address, base)
        start_s, end_s = _seconds(record, "start_s"), _seconds(record, "end_s")
        if end_s is not None and end_s <= (start_s or 0):
            raise ValueError(f"end_s {end_s:g} is not after start_s {start_s or 0:g}")
        split = _text(record, "split")
        if split and split not in SPLITS:
            raise ValueError(f"split {split[:40]!r} is unknown; use one of {', '.join(SPLITS)}")
        video_id = _text(record, "video_id") or _derive_id(address, start_s, end_s)
        check_video_id(video_id, "this line")
        return _Line(
            number=number,
            uri=uri,
            video_id=video_id,
            caption=" ".join(_text(record, "caption").split()),
            split=next((name for name in SPLITS if name == split), None),
            start_s=start_s,
            end_s=end_s,
        )
    except ValueError as error:
        problems.add(number, str(error).removeprefix("this line: "))
        return None


def _address(address: str, base: str) -> str:
    if not is_local(address) or address.startswith(("/", "file://")):
        resolve(address)
        return absolute_uri(address)
    if ".." in address.split("/") or "\0" in address:
        raise ValueError(f"path {address[:80]!r} leaves the folder of the videos; give an absolute path instead")
    return join_uri(base, posixpath.normpath(address))


def _derive_id(address: str, start_s: float | None, end_s: float | None) -> str:
    """A readable id that depends on this line alone, so that adding lines changes no other id."""
    stem = posixpath.splitext(posixpath.basename(address))[0]
    span = "" if start_s is None and end_s is None else f"\n{start_s}\n{end_s}"
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:80]}-{_hash(address + span)[:10]}"


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"{column} is a {type(value).__name__}; a text is needed")
    return str(value).strip()


def _seconds(record: Mapping[str, Any], column: str) -> float | None:
    text = _text(record, column)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{column} is {text[:40]!r}; a number of seconds is needed") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{column} is {text[:40]}; it must be a finite number of seconds from the start, 0 or more")
    return seconds


def _read_records(file: str, warnings: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = posixpath.splitext(file.partition("?")[0])[1].lower()
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{file} ends in {suffix!r}; data.annotations needs a .csv or .jsonl file here")
    filesystem, path = resolve(file)
    with filesystem.open_input_stream(path, compression=None) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield from (_read_csv if suffix == ".csv" else _read_jsonl)(_bounded_lines(text, file), file, warnings)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error.reason}); convert it first") from error


def _read_csv(lines: Iterator[str], file: str, warnings: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames or (), file, warnings)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{file}, line {reader.line_num}: the number of fields differs from the header's; "
                    "quote captions that hold commas"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error


def _read_jsonl(lines: Iterator[str], file: str, warnings: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    columns: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number} is a {type(record).__name__}; one JSON object per line is needed")
        columns.update(dict.fromkeys(record))
        yield number, record
    if columns:
        _check_columns(list(columns), file, warnings)


def _check_columns(columns: Sequence[str], file: str, warnings: list[str]) -> None:
    unknown = [column for column in columns if column not in COLUMNS]
    for column in unknown:
        if close := difflib.get_close_matches(str(column), COLUMNS, n=1, cutoff=0.75):
            raise ValueError(f"{file}: column {column!r} is unknown; did you mean {close[0]!r}?")
    if "caption" not in columns or ("path" in columns) == ("uri" in columns):
        raise ValueError(
            f"{file} has the columns {', '.join(map(str, columns))}; it needs caption and one of path and uri "
            f"(known: {', '.join(COLUMNS)})"
        )
    if unknown:
        warnings.append(f"{len(unknown)} unknown columns are ignored: {examples(unknown)}")


def _bounded_lines(text: io.TextIOWrapper, file: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"{file}, line {number} has more than {MAX_LINE_CHARS:,} characters; it is no caption")
        yield line


def _parent(file: str) -> str:
    folder, mark, options = file.partition("?")
    return f"{posixpath.dirname(folder)}{mark}{options}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
