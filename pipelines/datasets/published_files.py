"""What the adapters of published data sets share: naming missing files, finding videos, comparing counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.datasets.annotations import storable
from pipelines.datasets.record_files import (
    Record,
    published_format,
    read_json_file,
    read_records,
    text_lines,
    text_of,
)
from pipelines.datasets.video_files import NO_FILE, Place, VideoFolder, check_video_id, video_stem
from pipelines.workspace.errors import examples, reason
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri, printable

Locate = Callable[[str], Place]
"""From a video's id to its file, or to where one was expected."""


def require_files(annotations: Storage, names: Sequence[str], *, dataset: str) -> None:
    """Raises ``FileNotFoundError`` that names every one of ``names`` that the folder lacks."""
    present = set(annotations.files())
    if missing := [name for name in names if name not in present]:
        raise FileNotFoundError(
            f"{annotations.place()} lacks {', '.join(missing)}; set data.annotations to the folder of {dataset}'s "
            f"annotation files: {', '.join(names)}"
        )


def locate_by_stem(videos: VideoFolder, *, suffix: str = ".mp4") -> Locate:
    """A function that finds the one video file named like an id, whatever its suffix and folder.

    A file that is missing is expected with ``suffix``. The function raises ``ValueError`` where
    there are several.
    """
    stems, reasons = videos.by_stem(), videos.reasons_by_stem()
    otherwise = NO_FILE
    # A video may lie in a folder that cannot be listed, so its absence is not certain.
    if videos.closed:
        otherwise += f" where files can be listed; closed are {examples(map(printable, videos.closed))}"

    def locate(video_id: str) -> Place:
        stem = video_stem(video_id)
        files = stems.get(stem, [])
        if len(files) > 1:
            raise ValueError(
                f"{videos.uri} holds several files of {video_id}: {examples(file.uri for file in files)}; keep one"
            )
        return {
            "uri": files[0].uri if files else join_uri(videos.uri, f"{stem}{suffix}"),
            "file": files[0] if files else None,
            "why_missing": reasons.get(stem, otherwise),
        }

    return locate


def read_published(annotations: Storage, name: str, *columns: str) -> Iterator[tuple[int, Record]]:
    """Numbered records of a CSV or JSON-lines file that has ``columns``; other columns are ignored.

    Raises:
        ValueError: the file has another form; see :func:`read_records`.
    """
    return read_records(join_uri(annotations.uri, name), published_format(*columns))


def read_texts(annotations: Storage, name: str, *columns: str) -> Iterator[dict[str, str]]:
    """As :func:`read_published`, with a text in every one of ``columns``, which include ``video_id``.

    Raises:
        ValueError: a value is missing, or a ``video_id`` is not allowed.
    """
    for number, record in read_published(annotations, name, *columns):
        with _naming(annotations, f"{name}, line {number}"):
            texts = {column: storable(text_of(record, column)) for column in columns}
            if absent := [column for column, text in texts.items() if not text]:
                raise ValueError(f"it lacks a value of {', '.join(absent)}")
        check_video_id(texts["video_id"], annotations.place(f"{name}, line {number}"))
        yield texts


def read_published_json(annotations: Storage, name: str) -> Any:
    """The JSON document in the file ``name``.

    Raises:
        ValueError: it is not JSON, or an object has a key twice.
    """
    return read_json_file(join_uri(annotations.uri, name))


def read_id_lines(annotations: Storage, name: str) -> list[str]:
    """The video ids of a text file with one per line, without repetitions.

    Raises:
        ValueError: the file is no UTF-8 text, or an id is not allowed.
    """
    with reading(annotations, name, form="one video id per line"):
        lines = text_lines(annotations.read_bytes(name), "it")
    return [check_video_id(video_id, name) for video_id in dict.fromkeys(lines) if video_id]


@contextmanager
def reading(annotations: Storage, name: str, *, form: str) -> Iterator[None]:
    """Turns the errors of unexpected content into a ``ValueError`` that names the file and its ``form``."""
    try:
        yield
    # All that taking apart a document of another form can raise.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
        raise ValueError(f"{annotations.place(name)}: {what}; the published form is {form}") from error


@contextmanager
def _naming(annotations: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{annotations.place(name)}: {reason(error)}") from error


def listing_warnings(
    list_name: str, listed: Iterable[str], annotation_name: str, described: Iterable[str]
) -> list[str]:
    """Sentences about listed videos without a caption, and described ones that are not listed."""
    # Dictionaries serve as sets that keep their order.
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
            # These ids are not checked and may hold anything.
            f"{examples(ascii(video)[:80] for video in unlisted)}"
        )
    return warnings


def refuse_shared_videos(lists: Mapping[str, Iterable[str]]) -> None:
    """Raises ``ValueError`` if a video is in more than one of ``lists``: ids of a split, by the name of its file."""
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
