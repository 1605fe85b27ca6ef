"""DiDeMo in its published layout, for paragraph retrieval.

Annotation folder: ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` (one id per line), and
``train_data.json``, ``val_data.json`` and ``test_data.json`` (lists of ``{"video", "description",
"times"}``, one for each described moment). Videos: files named like the ids, somewhere below one folder.

Copies differ in the suffixes: an id or a file may have one, another one, several or none. All
of them are compared, and known to the pipeline, without suffixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.datasets.paragraphs import Description, ParagraphDataset
from pipelines.datasets.published_files import read_id_lines, read_published_json, reading
from pipelines.datasets.record_files import is_missing
from pipelines.datasets.video_files import video_stem
from pipelines.workspace.storage import Storage

SEGMENT_END_S = 31.0
"""Annotators saw the first 30 seconds. The published segment ends a second later, so that at one
frame per second the frame at second 30, where the last described moment may end, is the last one."""

_DESCRIPTIONS_FORM = '[{"video": id, "description": text, "times": [[first, last], …]}, …]'


def _read_ids(annotations: Storage, name: str) -> list[str]:
    # Two ids that differ only in their suffix are one video.
    return list(dict.fromkeys(map(video_stem, read_id_lines(annotations, name))))


def _read_descriptions(annotations: Storage, name: str) -> dict[str, Description]:
    """By id without suffixes, with the sentences in the order of the file."""
    with reading(annotations, name, form=_DESCRIPTIONS_FORM):
        records = list(read_published_json(annotations, name))
    moments: dict[str, list[Mapping[str, Any]]] = {}
    for number, record in enumerate(records, start=1):
        with reading(annotations, f"{name}, entry {number}", form=_DESCRIPTIONS_FORM):
            sentence, video = record["description"], record["video"]
            if not isinstance(video, str) or not (isinstance(sentence, str) or is_missing(sentence)):
                raise ValueError("video or description is not a text")
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


DIDEMO = ParagraphDataset(
    title="DiDeMo",
    files={
        "train": ("train_list.txt", "train_data.json"),
        "val": ("val_list.txt", "val_data.json"),
        "test": ("test_list.txt", "test_data.json"),
    },
    # Copies differ.
    published_videos={"train": [8_392, 8_395], "val": [1_065], "test": [1_003, 1_004]},
    read_ids=_read_ids,
    read_descriptions=_read_descriptions,
)
