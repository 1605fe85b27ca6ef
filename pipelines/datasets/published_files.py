"""What the adapters of published data sets share: naming missing files, finding videos, comparing counts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.datasets.annotations import examples
from pipelines.datasets.line_files import MAX_LINE_CHARS
from pipelines.datasets.video_files import VideoFile, VideoFolder, check_video_id, video_stem
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri

Locate = Callable[[str], tuple[str, VideoFile | None]]
"""From a video's id to the address of its file, or where it was expected, and the file if it is there."""


def require_files(annotations: Storage, names: Sequence[str], *, dataset: str) -> None:
    """Raises ``FileNotFoundError`` that names every one of ``names`` that the folder lacks."""
    present = set(annotations.files())
    if missing := [name for name in names if name not in present]:
        raise FileNotFoundError(
            f"{annotations.uri} lacks {', '.join(missing)}; set data.annotations to the folder of {dataset}'s "
            f"annotation files: {', '.join(names)}"
        )


def locate_by_stem(videos: VideoFolder, *, suffix: str = ".mp4") -> Locate:
    """A function that finds the one video file named like an id, whatever its suffix and folder.

    A file that is missing is expected with ``suffix``. The function raises ``ValueError`` where
    there are several.
    """
    stems = videos.by_stem()

    def locate(video_id: str) -> tuple[str, VideoFile | None]:
        files = stems.get(video_stem(video_id), [])
        if len(files) > 1:
            raise ValueError(
                f"{videos.uri} holds several files of {video_id}: {examples(file.uri for file in files)}; keep one"
            )
        return (files[0].uri, files[0]) if files else (join_uri(videos.uri, f"{video_stem(video_id)}{suffix}"), None)

    return locate


def read_csv(annotations: Storage, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, of which ``columns`` must all have values.

    Raises:
        ValueError: a value is missing, or a ``video_id`` is not allowed.
    """
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(annotations.read_bytes(name).decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if any(not (row.get(column) or "").strip() for column in columns):
                raise ValueError(f"line {reader.line_num} lacks a value of {', '.join(columns)}")
            rows.append({column: row[column].strip() for column in columns})
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{annotations.uri}/{name}: {first_line(error)}") from error
    for row in rows:
        check_video_id(row["video_id"], name)
    return rows


def read_json_lines(annotations: Storage, name: str, fields: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered records of a file with one JSON object per line, each with all of ``fields``.

    Raises:
        ValueError: a line is no such object.
    """
    needed = set(fields)
    for number, line in enumerate(annotations.read_bytes(name).splitlines(), start=1):
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"{annotations.uri}/{name}, line {number} has more than {MAX_LINE_CHARS:,} characters")
        try:
            record = json.loads(line)
            missing = needed - record.keys()
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{annotations.uri}/{name}, line {number}: {first_line(error)}") from error
        if missing:
            raise ValueError(f"{annotations.uri}/{name}, line {number} lacks {', '.join(sorted(missing))}")
        yield number, record


def read_id_lines(annotations: Storage, name: str) -> list[str]:
    """The video ids of a text file with one per line, without repetitions.

    Raises:
        ValueError: the file is no UTF-8 text, or an id is not allowed.
    """
    with reading(annotations, name, form="one video id per line"):
        lines = annotations.read_bytes(name).decode("utf-8-sig").splitlines()
    return [check_video_id(video_id, name) for video_id in dict.fromkeys(map(str.strip, lines)) if video_id]


@contextmanager
def reading(annotations: Storage, name: str, *, form: str) -> Iterator[None]:
    """Turns what an unexpected content raises into a ``ValueError`` that names the file and its ``form``."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{annotations.uri}/{name}: {reason}; the published form is {form}") from error


def listing_warnings(
    list_name: str, listed: Iterable[str], annotation_name: str, described: Iterable[str]
) -> list[str]:
    """Sentences about listed videos without a caption, and described ones that are not listed."""
    # Dictionaries are sets that keep their order.
    in_list, in_annotations = dict.fromkeys(listed), dict.fromkeys(described)
    without = [video for video in in_list if video not in in_annotations]
    unlisted = [video for video in in_annotations if video not in in_list]
    warnings = []
    if without:
        warnings.append(
            f"{list_name}: {len(without):,} videos have no caption in {annotation_name} and are left out: "
            f"{examples(without)}"
        )
    if unlisted:
        warnings.append(
            f"{annotation_name}: {len(unlisted):,} videos are not in {list_name} and are left out: "
            # Nobody has checked these ids.
            f"{examples(ascii(video)[:80] for video in unlisted)}"
        )
    return warnings


def refuse_shared_videos(lists: Mapping[str, Iterable[str]]) -> None:
    """Raises ``ValueError`` if a video is in more than one of the lists of splits, by file name."""
    owner: dict[str, str] = {}
    for name, ids in lists.items():
        for video in dict.fromkeys(ids):
            if video in owner:
                both = sorted(set(ids) & set(lists[owner[video]]))
                raise ValueError(
                    f"{owner[video]} and {name} share {len(both):,} videos ({examples(both)}); "
                    "a video must not be trained on and tested with"
                )
            owner[video] = name


def count_warnings(counts: Iterable[tuple[str, int, int | Sequence[int], str]]) -> list[str]:
    """A sentence for each (file, count, published count or counts, what is counted) that differs."""
    warnings = []
    for name, count, published, what in counts:
        known = [published] if isinstance(published, int) else list(published)
        if count not in known:
            warnings.append(
                f"{name} holds {count:,} {what}; published: {' or '.join(f'{number:,}' for number in known)}"
            )
    return warnings


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
