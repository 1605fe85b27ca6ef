"""DiDeMo in its published layout, for paragraph retrieval.

Annotation folder: ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` (one id per line), and
``train_data.json``, ``val_data.json`` and ``test_data.json`` (lists of ``{"video", "description",
"times"}``, one for each described moment). Videos: files named like the ids, somewhere below one folder.

Copies differ in the suffixes: an id or a file may have one, another one, several or none. All
of them are compared, and known to the pipeline, without suffixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.datasets.annotations import Annotations
from pipelines.datasets.paragraphs import DescribedSplit, Description, paragraph_annotations
from pipelines.datasets.published_files import (
    locate_by_stem,
    read_id_lines,
    read_published_json,
    reading,
    require_files,
)
from pipelines.datasets.record_files import is_missing
from pipelines.datasets.video_files import VideoFolder, video_stem
from pipelines.recipe.data import Split
from pipelines.workspace.storage import Storage

SPLIT_FILES: Mapping[Split, tuple[str, str]] = {
    "train": ("train_list.txt", "train_data.json"),
    "val": ("val_list.txt", "val_data.json"),
    "test": ("test_list.txt", "test_data.json"),
}
"""The list and the annotation file of each split."""

ANNOTATION_FILES = [name for names in SPLIT_FILES.values() for name in names]

SEGMENT_END_S = 31.0
"""Annotators saw the first 30 seconds. The published segment ends a second later, so that at one
frame per second the frame at second 30, where the last described moment may end, is the last one."""

PUBLISHED_VIDEOS: Mapping[Split, Sequence[int]] = {"train": (8_392, 8_395), "val": (1_065,), "test": (1_003, 1_004)}
"""Numbers of videos in the lists of different copies."""

_DESCRIPTIONS_FORM = '[{"video": id, "description": text, "times": [[first, last], …]}, …]'


def read_didemo(annotations: Storage, videos: VideoFolder) -> Annotations:
    """The listed videos, each with all its descriptions joined to one caption.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: a file does not have its published form, or a video is in two lists.
    """
    require_files(annotations, ANNOTATION_FILES, dataset="DiDeMo")
    splits = [
        DescribedSplit(
            split=split,
            list_name=list_name,
            listed=list(dict.fromkeys(map(video_stem, read_id_lines(annotations, list_name)))),
            annotation_name=annotation_name,
            described=_read_descriptions(annotations, annotation_name),
            published_videos=PUBLISHED_VIDEOS[split],
        )
        for split, (list_name, annotation_name) in SPLIT_FILES.items()
    ]
    return paragraph_annotations(splits, locate_by_stem(videos))


def _read_descriptions(annotations: Storage, name: str) -> dict[str, Description]:
    """By id without suffixes, with the sentences in the order of the file."""
    with reading(annotations, name, form=_DESCRIPTIONS_FORM):
        records = list(read_published_json(annotations, name))
    moments: dict[str, list[Mapping[str, Any]]] = {}
    for number, record in enumerate(records, start=1):
        with reading(annotations, f"{name}, entry {number}", form=_DESCRIPTIONS_FORM):
            sentence, video = record["description"], record["video"]
            if not isinstance(video, str) or not (isinstance(sentence, str) or is_missing(sentence)):
                raise ValueError("video or description is no text")
            moment = {"description": "" if is_missing(sentence) else sentence, "times": list(record["times"])}
            moments.setdefault(video_stem(video), []).append(moment)
    return {
        video_id: Description(
            sentences=[moment["description"] for moment in described],
            spans=[span for moment in described for span in moment["times"]],
            end_s=SEGMENT_END_S,
        )
        for video_id, described in moments.items()
    }
