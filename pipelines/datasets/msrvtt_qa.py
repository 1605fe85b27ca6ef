"""MSR-VTT-QA in its published layout: questions about the videos of MSR-VTT.

Annotation folder: ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, a line
``{"question", "answer", "video_id", "answer_type"}`` per question. Each video is in one of the files. These splits
differ from those of the retrieval lists.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.datasets.annotations import (
    OVERALL,
    AnnotatedVideo,
    Annotations,
    Question,
    question_type,
    storable,
)
from pipelines.datasets.published_files import (
    count_warnings,
    locate_by_stem,
    read_published,
    reading,
    refuse_shared_videos,
    require_files,
)
from pipelines.datasets.record_files import text_of
from pipelines.datasets.video_files import VideoFolder, check_video_id
from pipelines.recipe.data import Split
from pipelines.workspace.storage import Storage

QUESTION_FILES: Mapping[Split, str] = {"train": "train.jsonl", "val": "val.jsonl", "test": "test.jsonl"}

ANSWER_LABELS_FILE = "train_ans2label.json"
"""The published vocabulary: an object from answer to class id."""

_FORM = '{"question": text, "answer": text, "video_id": id, "answer_type": text}'

PUBLISHED_QUESTIONS: Mapping[Split, int] = {"train": 158_581, "val": 12_278, "test": 72_821}

PUBLISHED_VIDEOS: Mapping[Split, int] = {"train": 6_513, "val": 497, "test": 2_990}


def read_msrvtt_qa(annotations: Storage, videos: VideoFolder) -> Annotations:
    """The videos that have questions, each in the split of its questions, without captions.

    Raises:
        FileNotFoundError: a question file is missing.
        ValueError: a file does not have its published form, or a video is in two of them.
    """
    require_files(annotations, list(QUESTION_FILES.values()), dataset="MSR-VTT-QA")
    unusable: list[str] = []
    by_split = {split: read_questions(annotations, split, unusable) for split in QUESTION_FILES}
    refuse_shared_videos({QUESTION_FILES[split]: found.keys() for split, found in by_split.items()})
    locate = locate_by_stem(videos)
    entries = []
    for split, found in by_split.items():
        for video_id, questions in found.items():
            entries.append(
                AnnotatedVideo(video_id=video_id, **locate(video_id), split=split, captions=(), questions=questions)
            )
    warnings = (
        unusable
        + question_count_warnings(by_split)
        + count_warnings(
            (QUESTION_FILES[split], len(found), PUBLISHED_VIDEOS[split], "videos") for split, found in by_split.items()
        )
    )
    return Annotations(videos=entries, warnings=warnings, files=list(QUESTION_FILES.values()))


def read_questions(annotations: Storage, split: Split, warnings: list[str]) -> dict[str, list[Question]]:
    """The questions of one split's file by video id, in the order of the file.

    Lines without a question or an answer are left out; a sentence in ``warnings`` says how many.

    Raises:
        ValueError: a line is not a question in the published form.
    """
    name = QUESTION_FILES[split]
    questions: dict[str, list[Question]] = {}
    num_unusable = 0
    for number, record in read_published(annotations, name, "question", "answer", "video_id", "answer_type"):
        with reading(annotations, f"{name}, line {number}", form=_FORM):
            video_id = check_video_id(_video_id(text_of(record, "video_id")), "this line")
            # Not clean_caption, which also joins inner spaces: answers must stay as the published vocabulary has them.
            question, answer, kind = (
                storable(text_of(record, column)) for column in ("question", "answer", "answer_type")
            )
            if kind == OVERALL:
                raise ValueError(f"answer_type {OVERALL!r} stands for all questions in the metrics")
        if question and answer:
            found = Question(question, answer, kind or question_type(question), split)
            questions.setdefault(video_id, []).append(found)
        else:
            num_unusable += 1
    if num_unusable:
        warnings.append(f"{name}: {num_unusable:,} lines have an empty question or answer and are left out")
    return questions


def question_count_warnings(by_split: Mapping[Split, Mapping[str, list[Question]]]) -> list[str]:
    """Sentences about numbers of questions that differ from the published ones."""
    return count_warnings(
        (QUESTION_FILES[split], sum(map(len, found.values())), PUBLISHED_QUESTIONS[split], "questions")
        for split, found in by_split.items()
    )


def _video_id(text: str) -> str:
    """Copies of MSR-VTT-QA name videos by id or by number alone."""
    return f"video{text}" if text.isdigit() else text
