"""Reading annotation files: CSV, JSON lines, JSON and lists of ids, of published data sets and the user's own.

Missing values are treated alike in every format: an empty cell of a CSV, ``null`` and ``NaN`` in JSON. Mistakes that
would hide a part of the file are refused: a column or key that occurs twice, more or fewer cells than columns.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.workspace.errors import StorageError, examples, reason, remedy
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.uris import absolute_uri, shown, suffix_of

MAX_LINE_CHARS = 1_000_000
"""Longer lines cannot be captions or questions; refusing them bounds the memory."""

_MAX_PROBLEMS = 5

Record = Mapping[str, Any]


@dataclass(slots=True)
class Problems:
    """Collects the problems of a file, so that one run reports all of them."""

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
class RecordFormat:
    """The columns of one kind of file."""

    setting: str
    """The setting that names the file, for messages."""

    columns: Sequence[str]
    """All columns that are used."""

    needs: str
    """The required columns, in words."""

    is_complete: Callable[[Collection[str]], bool]
    """Whether a file with these columns has the required ones."""

    others: bool = False
    """Whether it usually has other columns, about which no warning is needed."""


def published_format(*columns: str) -> RecordFormat:
    """The format of a file of a published data set that has these columns; others are ignored."""
    return RecordFormat(
        setting="data.annotations",
        columns=columns,
        needs=", ".join(columns),
        is_complete=lambda present: set(columns) <= set(present),
        others=True,
    )


def read_records(file: str, form: RecordFormat, warnings: list[str] | None = None) -> Iterator[tuple[int, Record]]:
    """Numbered records of a ``.csv`` or ``.jsonl`` file in UTF-8.

    Args:
        file: path or URI.
        form: which columns it has.
        warnings: gets a sentence about columns that are not known.

    Raises:
        ValueError: the file has another format or misses columns, or a line is not a record or is too long.
        FileNotFoundError: there is no such file.
    """
    suffix, place = suffix_of(file), shown(absolute_uri(file))
    if suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{place} ends in {suffix!r}; {form.setting} needs a .csv or .jsonl file here")
    read = _read_csv if suffix == ".csv" else _read_json_lines
    with _opened(file) as stream:
        try:
            # utf-8-sig drops the mark that Excel writes in front, which would become a part of the first column's name.
            # With newline="" the line ends inside of quoted cells reach the csv module as they are.
            lines = _bounded_lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), place)
            # Filled by read: all columns of JSON lines are known only after the last line.
            columns: dict[str, None] = {}
            yield from read(lines, place, form, columns)
        except UnicodeDecodeError as error:
            raise ValueError(f"{place} is not UTF-8 text ({error.reason}); convert it first") from error
    unknown = [column for column in columns if column not in form.columns]
    if unknown and warnings is not None and not form.others:
        warnings.append(f"{len(unknown)} unknown columns are ignored: {examples(unknown)}")


def _read_csv(
    lines: Iterator[str], place: str, form: RecordFormat, columns: dict[str, None]
) -> Iterator[tuple[int, Record]]:
    # Without strict, a quote that is never closed would silently take the rest of the file into one cell.
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if twice := sorted({column for column in header if header.count(column) > 1}):
            raise ValueError(f"{place} has the column {examples(map(repr, twice))} more than once; keep one of each")
        columns.update(dict.fromkeys(header))
        _check_columns(columns, place, form)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{place}, line {reader.line_num}: the number of fields differs from the header's, {len(row)} and "
                    f"{len(header)}; put texts that hold commas into double quotes"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{place}, line {reader.line_num}: {error}") from error


def _read_json_lines(
    lines: Iterator[str], place: str, form: RecordFormat, columns: dict[str, None]
) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}, line {number} is not JSON: {reason(error)}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}, line {number} is a {type(record).__name__}; one JSON object per line is needed")
        # In published files every line has all columns. In the user's own, a key that a line lacks is a missing value,
        # and only the file as a whole must have the required ones.
        if form.others and not form.is_complete(record):
            absent = [column for column in form.columns if column not in record]
            raise ValueError(f"{place}, line {number} lacks {', '.join(absent)}")
        columns.update(dict.fromkeys(record))
        yield number, record
    # Without a record there are no columns to check; callers say what an empty file lacks.
    if columns:
        _check_columns(columns, place, form)


def _check_columns(columns: Collection[str], place: str, form: RecordFormat) -> None:
    # A misspelt optional column, such as "spilt", would otherwise be ignored with all of its values.
    for column in columns if not form.others else ():
        close = [] if column in form.columns else difflib.get_close_matches(str(column), form.columns, 1, 0.75)
        if close:
            raise ValueError(f"{place}: column {column!r} is unknown; did you mean {close[0]!r}?")
    if not form.is_complete(columns):
        raise ValueError(
            f"{place} has the columns {', '.join(columns)[:400]}; it needs {form.needs} "
            f"(known: {', '.join(form.columns)})"
        )


def _bounded_lines(text: io.TextIOWrapper, place: str) -> Iterator[str]:
    number = 0
    # One more than is allowed, so that a longer line is noticed, and not taken for two.
    while line := text.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(
                f"{place}, line {number} has more than {MAX_LINE_CHARS:,} characters; no caption or question "
                "is that long"
            )
        yield line


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    filesystem, path = resolve(file)
    try:
        # By default Arrow would choose a decompression by the suffix of the name.
        with filesystem.open_input_stream(path, compression=None) as stream:
            yield stream
    # Both are OSErrors that already say what is wrong.
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        raise StorageError(f"cannot read {shown(absolute_uri(file))}: {reason(error)}. {remedy(error)}") from error


def read_json_file(file: str) -> Any:
    """The JSON document in the file at ``file``, a path or URI.

    Raises:
        ValueError: it is not JSON, or an object in it has a key twice.
        FileNotFoundError: there is no such file.
    """
    with _opened(file) as stream:
        return parse_json(stream.read())


def text_lines(content: bytes, place: str) -> list[str]:
    """The lines of a text file without outer spaces; one may be empty.

    Args:
        content: of the file.
        place: of the file, for messages.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 text ({error.reason}); convert it first") from error
    # str.splitlines would end lines at U+2028 and others, too, which JSON texts and captions may hold.
    return [line.strip() for line in io.StringIO(text, newline=None)]


def parse_json(text: str | bytes) -> Any:
    """The JSON document in ``text``.

    Raises:
        ValueError: it is not JSON, or an object has a key twice, of which JSON readers keep only the last.
    """
    return json.loads(text, object_pairs_hook=_with_keys_once)


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has {twice[:80]!r} more than once; keep one of each")
    return found


def is_missing(value: Any) -> bool:
    """Whether ``value`` stands for no value: ``null``, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, name: str) -> str:
    """``value``, a text or a number, as a text without outer spaces; empty if it is missing.

    Args:
        value: of a file.
        name: what it is, for messages.

    Raises:
        ValueError: it is something else.
    """
    if is_missing(value):
        return ""
    # Numbers are taken as texts, because an id or an answer may consist of digits. True and false are ints, too.
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or value in (math.inf, -math.inf):
        kind = type(value).__name__ if not isinstance(value, float) else str(value)
        raise ValueError(f"{name} is a {kind}; a text is needed")
    return str(value).strip()


def text_of(record: Record, column: str) -> str:
    """The text, or number, in ``column`` without outer spaces; empty where there is none.

    Raises:
        ValueError: it is something else.
    """
    return as_text(record.get(column), column)


def seconds_of(record: Record, column: str) -> float | None:
    """The seconds in ``column``, from the start of a video; None where there are none.

    Raises:
        ValueError: it is not a finite number, or is negative.
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
