"""MSR-VTT in its published layout, with the questions of MSR-VTT-QA where they are present.

Annotation folder: ``MSRVTT_data.json`` (sentences), ``MSRVTT_train.9k.csv`` or
``MSRVTT_train.7k.csv`` (training ids), ``MSRVTT_JSFUSION_test.csv`` (the "1k-A" test: one caption
per video) and optionally ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` (questions). The protocol
"full" needs the sentences alone. Videos: ``<video_id>.<any video suffix>`` somewhere below one folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pipelines.datasets.annotations import AnnotatedVideo, Annotations, Question, clean_caption
from pipelines.datasets.msrvtt_qa import ANSWER_LABELS_FILE, QUESTION_FILES, question_count_warnings, read_questions
from pipelines.datasets.published_files import (
    Locate,
    count_warnings,
    locate_by_stem,
    read_published_json,
    read_texts,
    reading,
    refuse_shared_videos,
    require_files,
)
from pipelines.datasets.record_files import as_text
from pipelines.datasets.video_files import VideoFolder, check_video_id
from pipelines.recipe.data import Split
from pipelines.workspace.errors import examples
from pipelines.workspace.storage import Storage

SENTENCES_FILE = "MSRVTT_data.json"
TEST_FILE = "MSRVTT_JSFUSION_test.csv"

PUBLISHED_VIDEOS = {"9k": 9000, "7k": 7010, "test": 1000}
"""Videos of the published lists."""

FULL_VIDEOS: Mapping[Split, int] = {"train": 6_513, "val": 497, "test": 2_990}
"""Videos of the data set's own split."""

PUBLISHED_CAPTIONS_PER_VIDEO = 20


Protocol = Literal["1k-A", "full"]


def annotation_files(train_list: Literal["9k", "7k"], protocol: Protocol = "1k-A") -> tuple[list[str], list[str]]:
    """Names of the files that must be there, and of those that may be."""
    lists = [] if protocol == "full" else [f"MSRVTT_train.{train_list}.csv", TEST_FILE]
    return [SENTENCES_FILE, *lists], [*QUESTION_FILES.values(), ANSWER_LABELS_FILE]


def read_msrvtt(
    annotations: Storage,
    videos: VideoFolder,
    *,
    train_list: Literal["9k", "7k"] = "9k",
    protocol: Protocol = "1k-A",
    check_counts: bool = True,
) -> Annotations:
    """The training list with all its captions and the test list with one caption per video, or the full split.

    Args:
        annotations: folder of the annotation files.
        videos: listing of the folder of the videos.
        train_list: which published training list.
        protocol: ``full`` takes the data set's own three splits, with all captions of each.
        check_counts: warn where the numbers differ from the published ones.

    Raises:
        FileNotFoundError: a required annotation file is missing.
        ValueError: a file does not have its published form, or a video is in both lists.
    """
    required, optional = annotation_files(train_list, protocol)
    require_files(annotations, required, dataset="MSR-VTT")
    present = set(annotations.files())

    captions, empty = _read_sentences(annotations, SENTENCES_FILE)
    warnings: list[str] = []
    without: list[str] = []
    if protocol == "full":
        splits = split_of_full(annotations, captions)
    else:
        splits, without = _listed(annotations, required[1], captions)
    by_split = {
        split: read_questions(annotations, split, warnings) for split, name in QUESTION_FILES.items() if name in present
    }
    # Every question keeps its own split, whichever list its video is in.
    questions: dict[str, list[Question]] = {}
    for found in by_split.values():
        for video, asked in found.items():
            questions.setdefault(video, []).extend(asked)
    locate = locate_by_stem(videos)
    entries = [
        _entry(video, split, texts, questions, locate)
        for split, listed in splits.items()
        for video, texts in listed.items()
    ]

    if empty:
        warnings.append(f"{SENTENCES_FILE} holds {empty:,} empty captions; they are left out")
    several = [video for video, texts in splits["test"].items() if len(texts) > 1]
    if several and protocol == "1k-A":
        warnings.append(
            f"{TEST_FILE}: {len(several):,} videos have more than one sentence, each a query of its own; the published "
            f"list has one of each video: {examples(several)}"
        )
    if without:
        warnings.append(f"{len(without):,} training videos have no caption and are left out: {examples(without)}")
    warnings += _question_warnings(entries, questions)
    if check_counts:
        if protocol == "full":
            warnings += _full_count_warnings(splits)
        else:
            warnings += _retrieval_count_warnings(train_list, splits["train"], splits["test"])
        warnings += question_count_warnings(by_split)
    files = [*required, *(name for name in optional if name in present)]
    return Annotations(videos=entries, warnings=warnings, files=files)


def _listed(
    annotations: Storage, train_list: str, captions: Mapping[str, Sequence[str]]
) -> tuple[dict[Split, dict[str, Sequence[str]]], list[str]]:
    """Captions by split and video of the published lists, and the training videos that have none."""
    train_ids = [row["video_id"] for row in read_texts(annotations, train_list, "video_id")]
    # The list has the query of each video; what MSRVTT_data.json says of these videos is not used.
    test: dict[str, list[str]] = {}
    for row in read_texts(annotations, TEST_FILE, "video_id", "sentence"):
        test.setdefault(row["video_id"], []).append(row["sentence"])
    refuse_shared_videos({train_list: train_ids, TEST_FILE: test})
    train = {video: captions.get(video, ()) for video in dict.fromkeys(train_ids)}
    without = [video for video, texts in train.items() if not texts]
    return {"train": {video: texts for video, texts in train.items() if texts}, "test": {**test}}, without


_SPLIT_NAMES: Mapping[str, Split] = {"train": "train", "validate": "val", "test": "test"}


def split_of_full(annotations: Storage, captions: Mapping[str, Sequence[str]]) -> dict[Split, dict[str, Sequence[str]]]:
    """Captions by split and video of the data set's own split.

    It is what the entries of ``videos`` say (``"split"``: train, validate or test). Copies without it are split by the
    published numbers: video0 to video6512, to video7009, to video9999.

    Raises:
        ValueError: an entry has another split, or none and an id without a number.
    """
    form = '{"videos": [{"video_id": id, "split": "train", "validate" or "test", …}, …], "sentences": […]}'
    with reading(annotations, SENTENCES_FILE, form=form):
        described = {
            as_text(video["video_id"], "video_id"): as_text(video["split"], "split")
            for video in read_published_json(annotations, SENTENCES_FILE).get("videos", [])
            if "split" in video
        }
        splits: dict[Split, dict[str, Sequence[str]]] = {"train": {}, "val": {}, "test": {}}
        for video, texts in captions.items():
            name = described.get(video)
            splits[_SPLIT_NAMES[name] if name is not None else _by_number(video)][video] = texts
    return splits


def _by_number(video_id: str) -> Split:
    match = re.fullmatch(r"video(\d+)", video_id)
    if match is None:
        raise ValueError(f"{video_id} has no split, and its id has no number from which to derive one")
    number = int(match[1])
    first_of_test = FULL_VIDEOS["train"] + FULL_VIDEOS["val"]
    return "train" if number < FULL_VIDEOS["train"] else "val" if number < first_of_test else "test"


def _full_count_warnings(splits: Mapping[Split, Mapping[str, Sequence[str]]]) -> list[str]:
    counts: list[tuple[str, int, int, str]] = []
    for split, videos in FULL_VIDEOS.items():
        num_captions = sum(map(len, splits[split].values()))
        counts += [
            (SENTENCES_FILE, len(splits[split]), videos, f"videos of {split}"),
            (SENTENCES_FILE, num_captions, videos * PUBLISHED_CAPTIONS_PER_VIDEO, f"captions of {split} videos"),
        ]
    return count_warnings(counts)


def _entry(
    video_id: str,
    split: Split,
    captions: Sequence[str],
    questions: Mapping[str, Sequence[Question]],
    locate: Locate,
) -> AnnotatedVideo:
    return AnnotatedVideo(
        video_id=video_id, **locate(video_id), split=split, captions=captions, questions=questions.get(video_id, ())
    )


def _read_sentences(annotations: Storage, name: str) -> tuple[dict[str, list[str]], int]:
    """Captions by video id, and the number of empty ones."""
    with reading(annotations, name, form='{"sentences": [{"caption": text, "video_id": id, …}, …]}'):
        sentences = list(read_published_json(annotations, name)["sentences"])
    captions: dict[str, list[str]] = {}
    num_empty = 0
    for number, sentence in enumerate(sentences, start=1):
        with reading(annotations, f"{name}, sentence {number:,}", form='{"caption": text, "video_id": id, …}'):
            video_id = check_video_id(as_text(sentence["video_id"], "video_id"), "it")
            caption = clean_caption(as_text(sentence["caption"], "caption"))
        if caption:
            captions.setdefault(video_id, []).append(caption)
        else:
            num_empty += 1
    return captions, num_empty


def _question_warnings(entries: Iterable[AnnotatedVideo], questions: Mapping[str, Sequence[Question]]) -> list[str]:
    """MSR-VTT-QA splits the videos in another way than the retrieval lists do."""
    warnings = []
    seen = sum(
        entry.split == "train" and any(question.split == "test" for question in entry.questions) for entry in entries
    )
    if seen:
        warnings.append(
            f"{seen:,} training videos of the retrieval lists are test videos of MSR-VTT-QA: a question model that "
            "starts from a retrieval model trained on them has seen their captions"
        )
    absent = questions.keys() - {entry.video_id for entry in entries}
    if absent:
        warnings.append(
            f"{len(absent):,} videos of MSR-VTT-QA are in none of the retrieval lists and are left out; "
            "data.dataset msrvtt_qa takes them all"
        )
    return warnings


def _retrieval_count_warnings(
    train_list: Literal["9k", "7k"], train: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]]
) -> list[str]:
    num_captions = sum(map(len, train.values()))
    return count_warnings(
        [
            (f"MSRVTT_train.{train_list}.csv", len(train), PUBLISHED_VIDEOS[train_list], "videos"),
            (TEST_FILE, len(test), PUBLISHED_VIDEOS["test"], "videos"),
            (
                SENTENCES_FILE,
                num_captions,
                # Of the videos that are listed, so that a shorter list gives one warning and not two.
                len(train) * PUBLISHED_CAPTIONS_PER_VIDEO,
                "captions of the training videos",
            ),
        ]
    )
