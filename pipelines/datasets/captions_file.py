"""The user's own videos: a CSV or JSONL file with one caption per line.

Columns: ``path`` or ``uri`` of the video, ``caption``, and optionally ``split`` (train, val,
test), ``video_id``, ``start_s``, ``end_s``. Lines of the same video, or of the same segment of it,
are merged. If no line names a split, a tenth of the files become the test split. They are chosen by a hash of their
path, so that adding videos moves no other video to another split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.datasets.annotations import AnnotatedVideo, Annotations, clean_caption
from pipelines.datasets.own_files import derived_id, drawn_splits, split_of, video_address
from pipelines.datasets.record_files import Problems, Record, RecordFormat, read_records, seconds_of, text_of
from pipelines.datasets.video_files import check_video_id, find_files
from pipelines.recipe.data import Split
from pipelines.workspace.errors import examples
from pipelines.workspace.uris import absolute_uri, parent_uri

_FORMAT = RecordFormat(
    setting="data.annotations",
    columns=("path", "uri", "caption", "split", "video_id", "start_s", "end_s"),
    needs="caption and one of path and uri",
    is_complete=lambda columns: "caption" in columns and ("path" in columns) != ("uri" in columns),
)


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
    base = videos if videos is not None else parent_uri(file)
    problems = Problems(file)
    warnings: list[str] = []
    lines, num_empty = [], 0
    for number, record in read_records(file, _FORMAT, warnings):
        line = _parse(number, record, base, problems)
        # A line without a caption counts for nothing, not even for the split of its video.
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
                **found.place(first.uri),
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
    # All lines of a video name the same split, and all videos have one or none does: see _check_consistency.
    given = {video_id: members[0].split for video_id, members in by_id.items()}
    splits: dict[str, Split] = {video_id: split for video_id, split in given.items() if split is not None}
    if not splits:
        return drawn_splits({video_id: members[0].uri for video_id, members in by_id.items()}, warnings)
    if "test" not in splits.values():
        warnings.append("no video has the split test; set evaluation.split to val, or add test videos")
    return splits


def _warn_of_shared_files(entries: Iterable[AnnotatedVideo], warnings: list[str]) -> None:
    # Segments of one file look alike, so a model may know a tested video from its training. The splits are the
    # user's, so they stay.
    splits: dict[str, set[Split]] = {}
    for entry in entries:
        splits.setdefault(entry.uri, set()).add(entry.split)
    shared = [uri for uri, members in splits.items() if len(members) > 1]
    if shared:
        warnings.append(f"{len(shared):,} files have segments in more than one split: {examples(shared)}")


def _check_consistency(lines: Iterable[_Line], problems: Problems) -> None:
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
            # Said once: every further line would only repeat it.
            problems.add(line.number, "some lines name a split and others do not; name it on all lines or on none")
            return


def _parse(number: int, record: Record, base: str, problems: Problems) -> _Line | None:
    try:
        address = text_of(record, "path") or text_of(record, "uri")
        if not address:
            raise ValueError("path (or uri) is empty")
        uri = video_address(address, base)
        start_s, end_s = seconds_of(record, "start_s"), seconds_of(record, "end_s")
        if end_s is not None and end_s <= (start_s or 0):
            raise ValueError(f"end_s {end_s:g} is not after start_s {start_s or 0:g}")
        split = split_of(record)
        video_id = text_of(record, "video_id") or derived_id(address, start_s, end_s)
        check_video_id(video_id, "this line")
        return _Line(
            number=number,
            uri=uri,
            video_id=video_id,
            caption=clean_caption(text_of(record, "caption")),
            split=split,
            start_s=start_s,
            end_s=end_s,
        )
    except ValueError as error:
        # Problems writes the number of the line in front of it, which says the place.
        problems.add(number, str(error).removeprefix("this line: "))
        return None
