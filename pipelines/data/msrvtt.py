"""MSR-VTT in its published layout, with the questions of MSR-VTT-QA where they are present.

Annotation folder: ``MSRVTT_data.json`` (sentences), ``MSRVTT_train.9k.csv`` or
``MSRVTT_train.7k.csv`` (training ids), ``MSRVTT_JSFUSION_test.csv`` (the "1k-A" test: one caption
per video) and optionally ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` (questions). Videos:
``<video_id>.<any video suffix>`` somewhere below one folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pipelines.configs import Split
from pipelines.data.annotations import AnnotatedVideo, Annotations, Question, examples
from pipelines.data.video_files import VideoFile, VideoFolder, check_video_id, join_uri
from pipelines.storage import Storage

SENTENCES_FILE = "MSRVTT_data.json"
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
QUESTION_FILES: Mapping[Split, str] = {"train": "train.jsonl", "val": "val.jsonl", "test": "test.jsonl"}

PUBLISHED_VIDEOS = {"9k": 9000, "7k": 7010, "test": 1000}
"""Videos of the published lists."""

PUBLISHED_CAPTIONS_PER_VIDEO = 20

PUBLISHED_QUESTIONS: Mapping[Split, int] = {"train": 158_581, "val": 12_278, "test": 72_821}


def annotation_files(train_list: Literal["9k", "7k"]) -> tuple[list[str], list[str]]:
    """Names of the files that must be there, and of those that may be."""
    return [SENTENCES_FILE, f"MSRVTT_train.{train_list}.csv", TEST_FILE], list(QUESTION_FILES.values())


def read_msrvtt(
    annotations: Storage, videos: VideoFolder, *, train_list: Literal["9k", "7k"] = "9k", check_counts: bool = True
) -> Annotations:
    """The training list with all its captions and the test list with one caption per video.

    Args:
        annotations: folder of the annotation files.
        videos: listing of the folder of the videos.
        train_list: which published training list.
        check_counts: warn where the numbers differ from the published ones.

    Raises:
        FileNotFoundError: a required annotation file is missing.
        ValueError: a file does not have its published form, or a video is in both lists.
    """
    required, optional = annotation_files(train_list)
    present = set(annotations.files())
    if missing := [name for name in required if name not in present]:
        raise FileNotFoundError(
            f"{annotations.uri} lacks {', '.join(missing)}; set data.annotations to the folder of MSR-VTT's "
            "annotation files (MSRVTT_data.json and the two CSV lists)"
        )
    questions_present = {split: name for split, name in QUESTION_FILES.items() if name in present}

    captions, empty = _read_sentences(annotations, SENTENCES_FILE)
    train_ids = [row["video_id"] for row in _read_csv(annotations, required[1], ("video_id",))]
    test = {row["video_id"]: row["sentence"] for row in _read_csv(annotations, TEST_FILE, ("video_id", "sentence"))}
    if both := sorted(set(train_ids) & test.keys()):
        raise ValueError(
            f"{required[1]} and {TEST_FILE} share {len(both):,} videos ({examples(both)}); "
            "a video must not be trained on and tested with"
        )

    sentences: dict[str, Sequence[str]] = {video: captions.get(video, ()) for video in dict.fromkeys(train_ids)}
    without = [video for video, texts in sentences.items() if not texts]
    questions, question_counts = _read_questions(annotations, questions_present)
    locate = _locator(videos)
    entries = [_entry(video, "train", texts, questions, locate) for video, texts in sentences.items() if texts] + [
        _entry(video, "test", [sentence], questions, locate) for video, sentence in test.items()
    ]

    warnings = []
    if empty:
        warnings.append(f"{SENTENCES_FILE} holds {empty:,} empty captions; they are left out")
    if without:
        warnings.append(f"{len(without):,} training videos have no caption and are left out: {examples(without)}")
    warnings += _question_warnings(entries, questions_present, annotations)
    if check_counts:
        warnings += _count_warnings(train_list, sentences, test, question_counts)
    files = [*required, *(name for name in optional if name in present)]
    return Annotations(videos=entries, warnings=warnings, files=files)


def _entry(
    video_id: str,
    split: Split,
    captions: Sequence[str],
    questions: Mapping[str, Sequence[Question]],
    locate: Callable[[str], tuple[str, VideoFile | None]],
) -> AnnotatedVideo:
    uri, file = locate(video_id)
    return AnnotatedVideo(
        video_id=video_id, uri=uri, file=file, split=split, captions=captions, questions=questions.get(video_id, ())
    )


def _locator(videos: VideoFolder) -> Callable[[str], tuple[str, VideoFile | None]]:
    stems = videos.by_stem()

    def locate(video_id: str) -> tuple[str, VideoFile | None]:
        files = stems.get(video_id, [])
        if len(files) > 1:
            raise ValueError(
                f"{videos.uri} holds several files of {video_id}: {examples(file.uri for file in files)}; keep one"
            )
        return (files[0].uri, files[0]) if files else (join_uri(videos.uri, f"{video_id}.mp4"), None)

    return locate


def _read_sentences(annotations: Storage, name: str) -> tuple[dict[str, list[str]], int]:
    """Captions by video id, and the number of empty ones."""
    try:
        sentences = annotations.read_json(name)["sentences"]
        pairs = [(str(sentence["video_id"]), str(sentence["caption"]).strip()) for sentence in sentences]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations.uri}/{name} is not MSR-VTT's sentence file ({_first_line(error)}); it needs "
            '{"sentences": [{"caption", "video_id", …}, …]}'
        ) from error
    captions: dict[str, list[str]] = {}
    for video_id, caption in pairs:
        if caption:
            captions.setdefault(check_video_id(video_id, name), []).append(caption)
    return captions, sum(not caption for _, caption in pairs)


def _read_csv(annotations: Storage, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(annotations.read_bytes(name).decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if any(not (row.get(column) or "").strip() for column in columns):
                raise ValueError(f"line {reader.line_num} lacks a value of {', '.join(columns)}")
            rows.append({column: row[column].strip() for column in columns})
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{annotations.uri}/{name}: {_first_line(error)}") from error
    for row in rows:
        check_video_id(row["video_id"], name)
    return rows


def _read_questions(
    annotations: Storage, files: Mapping[Split, str]
) -> tuple[dict[str, list[Question]], dict[Split, int]]:
    """Questions by video id, and how many each file holds."""
    questions: dict[str, list[Question]] = {}
    counts: dict[Split, int] = {}
    for split, name in files.items():
        counts[split] = 0
        for record in _json_lines(annotations, name):
            question = Question(record["question"], record["answer"], record["answer_type"])
            questions.setdefault(_question_video(record["video_id"]), []).append(question)
            counts[split] += 1
    return questions, counts


def _json_lines(annotations: Storage, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(annotations.read_bytes(name).splitlines(), start=1):
        try:
            record = json.loads(line)
            missing = {"question", "answer", "video_id", "answer_type"} - record.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{annotations.uri}/{name}, line {number}: {_first_line(error)}") from error
        if missing:
            raise ValueError(f"{annotations.uri}/{name}, line {number} lacks {', '.join(sorted(missing))}")
        yield {key: value if key == "video_id" else str(value) for key, value in record.items()}


def _question_video(video_id: str | int) -> str:
    """Copies of MSR-VTT-QA name videos by id or by number alone."""
    text = str(video_id)
    return f"video{text}" if text.isdigit() else text


def _question_warnings(
    entries: Iterable[AnnotatedVideo], files: Mapping[Split, str], annotations: Storage
) -> list[str]:
    """MSR-VTT-QA splits the videos in another way than the retrieval lists do."""
    if "test" not in files:
        return []
    tested = {_question_video(record["video_id"]) for record in _json_lines(annotations, files["test"])}
    trained = sum(entry.split == "train" and entry.video_id in tested for entry in entries)
    if not trained:
        return []
    return [
        f"{trained:,} training videos of the retrieval lists are test videos of MSR-VTT-QA; "
        "question answering must split by its own files"
    ]


def _count_warnings(
    train_list: Literal["9k", "7k"],
    train: Mapping[str, Sequence[str]],
    test: Mapping[str, str],
    question_counts: Mapping[Split, int],
) -> list[str]:
    num_captions = sum(map(len, train.values()))
    counts = [
        (f"MSRVTT_train.{train_list}.csv", len(train), PUBLISHED_VIDEOS[train_list], "videos"),
        (TEST_FILE, len(test), PUBLISHED_VIDEOS["test"], "videos"),
        (SENTENCES_FILE, num_captions, len(train) * PUBLISHED_CAPTIONS_PER_VIDEO, "captions of the training videos"),
        *(
            (QUESTION_FILES[split], count, PUBLISHED_QUESTIONS[split], "questions")
            for split, count in question_counts.items()
        ),
    ]
    return [
        f"{name} holds {count:,} {what}; published: {published:,}"
        for name, count, published, what in counts
        if count != published
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
