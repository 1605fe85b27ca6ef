"""What the user's own files of captions or questions share: records with line numbers, checked addresses and splits."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.datasets.annotations import examples
from pipelines.recipe.data import SPLITS, Split
from pipelines.workspace.file_systems import check_uri, resolve
from pipelines.workspace.uris import absolute_uri, is_local, join_uri

TEST_FRACTION_PERCENT = 10
"""Percentage of files that become the test split where a file names no split."""

MAX_LINE_CHARS = 1_000_000
"""Longer lines are no captions or questions; refusing them bounds the memory."""

_MAX_PROBLEMS = 5

Record = Mapping[str, Any]


@dataclass(slots=True)
class Problems:
    """Collects what is wrong with a file, so that one run tells all of it."""

    source: str
    messages: list[str] = field(default_factory=list)

    def add(self, number: int, message: str) -> None:
        """Line ``number`` cannot be used."""
        self.messages.append(f"line {number}: {message}")

    def raise_if_any(self) -> None:
        """Raises ``ValueError`` with the first of the problems, and the number of all of them."""
        if self.messages:
            shown = "\n  ".join(self.messages[:_MAX_PROBLEMS])
            more = len(self.messages) - _MAX_PROBLEMS
            tail = f"\n  and {more:,} more" if more > 0 else ""
            raise ValueError(f"{self.source} cannot be used:\n  {shown}{tail}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LineFormat:
    """The columns of one kind of file."""

    setting: str
    """The setting that names the file, for messages."""

    columns: Sequence[str]
    """All that have a meaning."""

    needs: str
    """Which columns there must be, in words."""

    is_complete: Callable[[Collection[str]], bool]
    """Whether a file with these columns has what it needs."""


def read_records(file: str, form: LineFormat, warnings: list[str]) -> Iterator[tuple[int, Record]]:
    """Numbered records of a ``.csv`` or ``.jsonl`` file in UTF-8; unknown columns become a warning.

    Raises:
        ValueError: the file has another format or misses columns, or a line is none or too long.
        FileNotFoundError: there is no such file.
    """
    suffix = posixpath.splitext(file.partition("?")[0])[1].lower()
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{file} ends in {suffix!r}; {form.setting} needs a .csv or .jsonl file here")
    filesystem, path = resolve(file)
    with filesystem.open_input_stream(path, compression=None) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            read = _read_csv if suffix == ".csv" else _read_jsonl
            yield from read(_bounded_lines(text, file), file, form, warnings)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error.reason}); convert it first") from error


def _read_csv(lines: Iterator[str], file: str, form: LineFormat, warnings: list[str]) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames or (), file, form, warnings)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{file}, line {reader.line_num}: the number of fields differs from the header's; "
                    "quote texts that hold commas"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error


def _read_jsonl(lines: Iterator[str], file: str, form: LineFormat, warnings: list[str]) -> Iterator[tuple[int, Record]]:
    columns: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number} is a {type(record).__name__}; one JSON object per line is needed")
        columns.update(dict.fromkeys(record))
        yield number, record
    if columns:
        _check_columns(list(columns), file, form, warnings)


def _check_columns(columns: Sequence[str], file: str, form: LineFormat, warnings: list[str]) -> None:
    unknown = [column for column in columns if column not in form.columns]
    for column in unknown:
        if close := difflib.get_close_matches(str(column), form.columns, n=1, cutoff=0.75):
            raise ValueError(f"{file}: column {column!r} is unknown; did you mean {close[0]!r}?")
    if not form.is_complete(columns):
        raise ValueError(
            f"{file} has the columns {', '.join(map(str, columns))}; it needs {form.needs} "
            f"(known: {', '.join(form.columns)})"
        )
    if unknown:
        warnings.append(f"{len(unknown)} unknown columns are ignored: {examples(unknown)}")


def _bounded_lines(text: io.TextIOWrapper, file: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"{file}, line {number} has more than {MAX_LINE_CHARS:,} characters; it is no sentence")
        yield line


def text_of(record: Record, column: str) -> str:
    """The text, or number, in ``column`` without outer spaces; empty where there is none.

    Raises:
        ValueError: it is something else.
    """
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError(f"{column} is a {type(value).__name__}; a text is needed")
    return str(value).strip()


def seconds_of(record: Record, column: str) -> float | None:
    """The seconds in ``column``, from the start of a video; None where there are none.

    Raises:
        ValueError: it is no finite number, or a negative one.
    """
    text = text_of(record, column)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{column} is {text[:40]!r}; a number of seconds is needed") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{column} is {text[:40]}; it must be a finite number of seconds from the start, 0 or more")
    return seconds


def split_of(record: Record) -> Split | None:
    """The split that a record names.

    Raises:
        ValueError: it is not one of train, val and test.
    """
    text = text_of(record, "split")
    if text and text not in SPLITS:
        raise ValueError(f"split {text[:40]!r} is unknown; use one of {', '.join(SPLITS)}")
    return next((split for split in SPLITS if split == text), None)


def video_address(address: str, base: str) -> str:
    """The URI of a video that a record names by a path relative to ``base``, an absolute one, or a URI.

    Raises:
        ValueError: a relative path leaves ``base``, or the scheme is unknown.
    """
    if not is_local(address) or address.startswith(("/", "file://")):
        check_uri(address)
        return absolute_uri(address)
    if ".." in address.split("/") or "\0" in address:
        raise ValueError(f"path {address[:80]!r} leaves the folder of the videos; give an absolute path instead")
    return join_uri(base, posixpath.normpath(address))


def derived_id(address: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """A readable id that depends on this address and segment alone, so that adding lines changes no other id."""
    stem = posixpath.splitext(posixpath.basename(address))[0]
    span = "" if start_s is None and end_s is None else f"\n{start_s}\n{end_s}"
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:80]}-{_hash(address + span)[:10]}"


def drawn_splits(uris: Mapping[str, str], warnings: list[str]) -> dict[str, Split]:
    """A split for each video id of a file that names none: a tenth of the files is tested with.

    A hash of a file's address decides, so that adding videos moves no other video. Segments of
    one file stay together: they look alike.

    Args:
        uris: addresses of the files by video id.
        warnings: gets a sentence about it.
    """
    files = sorted(set(uris.values()), key=_hash)
    # At least one file can be tested with.
    tested = {uri for uri in files if int(_hash(uri)[:8], 16) % 100 < TEST_FRACTION_PERCENT} or {files[0]}
    splits: dict[str, Split] = {video_id: "test" if uri in tested else "train" for video_id, uri in uris.items()}
    num_tested = sum(split == "test" for split in splits.values())
    warnings.append(
        f"no line names a split: {num_tested:,} of {len(splits):,} videos become the test split, chosen by a hash "
        "of their files; add a column split (train, val, test) to choose yourself"
    )
    return splits


def folder_of(file: str) -> str:
    """The folder in which ``file`` lies, with the options of its URI."""
    folder, mark, options = file.partition("?")
    return f"{posixpath.dirname(folder)}{mark}{options}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
