"""The user's own questions: a JSONL or CSV file with one question per line, for the videos of any data set.

Columns: ``video``, ``question``, ``answer``, and optionally ``type`` and ``split`` (train, val, test).
``video`` is the id of a video of the data set, or its path (relative to the folder of the videos)
or URI. If there is no other data set, each path that the file names is a video. If then no line names a split, a tenth
of the files become the test split, chosen by a hash of their path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.datasets.annotations import (
    OVERALL,
    AnnotatedVideo,
    Annotations,
    Question,
    clean_caption,
    question_type,
)
from pipelines.datasets.own_files import derived_id, drawn_splits, split_of, video_address
from pipelines.datasets.record_files import Problems, Record, RecordFormat, read_records, text_of
from pipelines.datasets.video_files import find_files
from pipelines.recipe.data import Split
from pipelines.workspace.uris import absolute_uri, parent_uri, printable

_FORMAT = RecordFormat(
    setting="data.questions",
    columns=("video", "question", "answer", "type", "split"),
    needs="video, question and answer",
    is_complete=lambda columns: {"video", "question", "answer"} <= set(columns),
)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the file, checked except for its video."""

    number: int
    video: str
    question: str
    answer: str
    kind: str
    split: Split | None


def attach_questions(annotations: Annotations, file: str, videos: str | None = None) -> Annotations:
    """The videos of a data set with the questions of ``file`` in place of the data set's own.

    A question without a split has that of its video.

    Args:
        annotations: what the data set's adapter read.
        file: path or URI of a ``.jsonl`` or ``.csv`` file in UTF-8.
        videos: folder at which relative paths start; the folder of ``file`` by default.

    Raises:
        ValueError: a line or column is not as required; the message lists the first of them all.
        FileNotFoundError: there is no such file.
    """
    file = absolute_uri(file)
    base = videos if videos is not None else parent_uri(file)
    problems, warnings = Problems(file), list(annotations.warnings)
    by_id = {entry.video_id: entry for entry in annotations.videos}
    # A file may have several segments; only an id tells them apart.
    by_uri: dict[str, list[AnnotatedVideo]] = {}
    for entry in annotations.videos:
        by_uri.setdefault(entry.uri, []).append(entry)
    asked: dict[str, list[_Line]] = {}
    for line in _read(file, problems, warnings):
        try:
            found = (
                [by_id[line.video]]
                if line.video in by_id
                # Entries hold their address in the form in which tables can hold it.
                else by_uri.get(printable(video_address(line.video, base)), [])
            )
        except ValueError as error:
            problems.add(line.number, str(error))
            continue
        if len(found) == 1:
            asked.setdefault(found[0].video_id, []).append(line)
        elif found:
            problems.add(line.number, f"video {line.video[:80]!r} has {len(found)} segments; name one by its video_id")
        else:
            problems.add(line.number, f"video {line.video[:80]!r} is neither an id nor a file of the data set")
    splits = {entry.video_id: entry.split for entry in annotations.videos}
    questions = _questions(asked, splits, problems, warnings)
    # Not earlier, so that one message names the problems of videos and of splits.
    problems.raise_if_any()
    entries = [replace(entry, questions=questions.get(entry.video_id, ())) for entry in annotations.videos]
    return Annotations(videos=entries, warnings=warnings, files=(*annotations.files, file))


def read_questions_file(file: str, videos: str | None = None) -> Annotations:
    """The videos that ``file`` names, each in the split of its questions, without captions.

    Args and errors are those of :func:`attach_questions`.
    """
    file = absolute_uri(file)
    base = videos if videos is not None else parent_uri(file)
    problems = Problems(file)
    warnings: list[str] = []
    asked: dict[str, list[_Line]] = {}
    uris: dict[str, str] = {}
    for line in _read(file, problems, warnings):
        try:
            uri = video_address(line.video, base)
        except ValueError as error:
            problems.add(line.number, str(error))
            continue
        video_id = derived_id(line.video)
        asked.setdefault(video_id, []).append(line)
        uris[video_id] = uri
    problems.raise_if_any()
    splits = _splits_of_videos(asked, uris, problems, warnings)
    questions = _questions(asked, splits, problems, warnings)
    problems.raise_if_any()
    found = find_files(sorted(set(uris.values())))
    entries = [
        AnnotatedVideo(
            video_id=video_id,
            **found.place(uri),
            split=splits[video_id],
            captions=(),
            questions=questions[video_id],
        )
        for video_id, uri in uris.items()
    ]
    return Annotations(videos=entries, warnings=warnings, files=(file,))


def _read(file: str, problems: Problems, warnings: list[str]) -> list[_Line]:
    lines, num_empty = [], 0
    for number, record in read_records(file, _FORMAT, warnings):
        line = _parse(number, record, problems)
        if line is not None and line.question and line.answer:
            lines.append(line)
        elif line is not None:
            num_empty += 1
    if num_empty:
        warnings.append(f"{num_empty:,} lines have an empty question or answer and are left out")
    if not lines:
        # Lines that cannot be read explain better why there is no question.
        problems.raise_if_any()
        raise ValueError(
            f"{file} holds no questions; it needs one line per question with the columns video, question and answer"
        )
    return lines


def _parse(number: int, record: Record, problems: Problems) -> _Line | None:
    try:
        video = text_of(record, "video")
        if not video:
            raise ValueError("video is empty")
        question = clean_caption(text_of(record, "question"))
        kind = clean_caption(text_of(record, "type")) or question_type(question)
        if kind == OVERALL:
            raise ValueError(f"type {OVERALL!r} stands for all questions in the metrics; choose another name")
        return _Line(
            number=number,
            video=video,
            question=question,
            answer=clean_caption(text_of(record, "answer")),
            kind=kind,
            split=split_of(record),
        )
    except ValueError as error:
        problems.add(number, str(error))
        return None


def _splits_of_videos(
    asked: Mapping[str, Sequence[_Line]], uris: Mapping[str, str], problems: Problems, warnings: list[str]
) -> dict[str, Split]:
    every = [line for lines in asked.values() for line in lines]
    without = [line for line in every if line.split is None]
    if len(without) == len(every):
        return drawn_splits(uris, warnings)
    if without:
        problems.add(without[0].number, "some lines name a split and others do not; name it on all lines or on none")
        problems.raise_if_any()
    # Every line names a split here. The condition is for the type checker.
    return {video_id: lines[0].split for video_id, lines in asked.items() if lines[0].split is not None}


def _questions(
    asked: Mapping[str, Sequence[_Line]], splits: Mapping[str, Split], problems: Problems, warnings: list[str]
) -> dict[str, list[Question]]:
    """The questions of each video without repetitions, all of them in one split."""
    questions: dict[str, list[Question]] = {}
    num_repeated = 0
    for video_id, lines in asked.items():
        first = lines[0]
        for line in lines:
            if (line.split or splits[video_id]) != (first.split or splits[video_id]):
                problems.add(
                    line.number,
                    f"video {line.video[:80]!r} has split {line.split or splits[video_id]} here and "
                    f"{first.split or splits[video_id]} on line {first.number}; "
                    "a video must not be trained on and tested with",
                )
        found = [Question(line.question, line.answer, line.kind, line.split or splits[video_id]) for line in lines]
        questions[video_id] = list(dict.fromkeys(found))
        num_repeated += len(found) - len(questions[video_id])
    if num_repeated:
        warnings.append(f"{num_repeated:,} questions repeat another question of their video and are left out")
    if not any(question.split == "test" for members in questions.values() for question in members):
        warnings.append("no question has the split test; set qa_evaluation.split to val, or add test questions")
    return questions
