"""ActivityNet Captions in its published layout, for paragraph retrieval.

Annotation folder: ``train_ids.json`` and ``val_ids.json`` (lists of ids, which start with ``v_``),
``train.json`` and ``val_1.json`` (an object from id to ``{"duration", "timestamps", "sentences"}``).
Videos: ``<id>.<any video suffix>`` somewhere below one folder.

Published results are measured on val_1, so it is the test split; there is no validation split. ``val_2.json``, other
annotations of most of the same videos, is the other test; it lists its videos itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.datasets.paragraphs import Description, ParagraphDataset
from pipelines.datasets.published_files import read_published_json, reading
from pipelines.datasets.record_files import is_missing
from pipelines.datasets.video_files import check_video_id
from pipelines.workspace.storage import Storage

VAL_2 = "val_2.json"

_DESCRIPTIONS_FORM = '{"v_…": {"duration": seconds, "timestamps": [[start, end], …], "sentences": […]}, …}'


def _read_ids(annotations: Storage, name: str) -> list[str]:
    with reading(annotations, name, form='["v_…", …]'):
        ids = read_published_json(annotations, name)
        # val_2.json has no list beside it; its own keys are the ids.
        if isinstance(ids, dict) and name == VAL_2:
            ids = list(ids)
        if not isinstance(ids, list) or not all(isinstance(video_id, str) for video_id in ids):
            raise ValueError("it is not a list of texts")
    return [check_video_id(video_id, name) for video_id in dict.fromkeys(ids)]


def _read_descriptions(annotations: Storage, name: str) -> dict[str, Description]:
    with reading(annotations, name, form=_DESCRIPTIONS_FORM):
        records = read_published_json(annotations, name).items()
    descriptions = {}
    for video_id, record in records:
        with reading(annotations, f"{name}, {video_id[:80]!r}", form=_DESCRIPTIONS_FORM):
            descriptions[video_id] = _description(record)
    return descriptions


def _description(record: Mapping[str, Any]) -> Description:
    # Whole seconds, as published.
    end_s = math.ceil(record["duration"])
    sentences = ["" if is_missing(sentence) else sentence for sentence in list(record["sentences"])]
    # A single text is a sequence of texts, too, so the list itself has to be checked.
    if not isinstance(record["sentences"], list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError("sentences is not a list of texts")
    if end_s < 1:
        raise ValueError(f"duration is {record['duration']}; it must be positive")
    return Description(sentences=sentences, spans=list(record["timestamps"]), end_s=float(end_s))


ACTIVITYNET = ParagraphDataset(
    title="ActivityNet Captions",
    files={"train": ("train_ids.json", "train.json"), "test": ("val_ids.json", "val_1.json")},
    published_videos={"train": [10_009], "test": [4_917]},
    read_ids=_read_ids,
    read_descriptions=_read_descriptions,
)

ACTIVITYNET_VAL_2 = replace(
    ACTIVITYNET,
    files={**ACTIVITYNET.files, "test": (VAL_2, VAL_2)},
    published_videos={**ACTIVITYNET.published_videos, "test": [4_885]},
)
"""Tested with the other annotations."""
