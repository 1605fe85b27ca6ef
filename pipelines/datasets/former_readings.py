"""Finds annotations that the third version of the manifest stage read differently. Only these are read again by the
fourth.

That version took ``null`` and ``NaN`` for words, kept questions without a text, the last of several lines about a
video and the last of several columns of one name, and cut texts at commas that are not quoted. It read everything else
as the fourth does, so its manifests, and the artifacts made from them, remain valid.
"""

from __future__ import annotations

import csv
import io
import re

from pipelines.datasets.adapters import ADAPTERS
from pipelines.recipe.data import DataConfig
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name, parent_uri, suffix_of

# null or NaN as a value, and questions and answers of nothing but spaces. It may also hit the inside of a caption: then
# work is done again that need not be, while a miss would keep a manifest that is wrong.
_IN_JSON = re.compile(rb"""[:\[,]\s*(null|NaN)\s*[,\]}]|"(question|answer)"\s*:\s*"\s*\"""")


def is_read_otherwise(config: DataConfig) -> bool:
    """Whether the third version made, or may have made, another manifest of these annotations.

    Raises:
        FileNotFoundError: an annotation file is not there.
    """
    files = [] if config.questions is None else [config.questions]
    if config.dataset == "captions_file" and config.annotations is not None:
        files.append(config.annotations)
    folders = [(Storage(parent_uri(file)), last_name(file)) for file in files]
    if config.dataset != "captions_file" and config.annotations is not None:
        folder = Storage(config.annotations)
        required, optional = ADAPTERS[config.dataset].files(config)
        present = {*required, *optional} & set(folder.files())
        folders += [(folder, name) for name in sorted(present)]
    return any(_differs(name, folder.read_bytes(name)) for folder, name in folders)


def _differs(name: str, content: bytes) -> bool:
    if suffix_of(name) != ".csv":
        return suffix_of(name) in (".json", ".jsonl") and _IN_JSON.search(content) is not None
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error):
        # Whoever reads it says what is wrong with it.
        return True
    header, *lines = rows or [[]]
    if len(set(header)) < len(header) or any(len(line) != len(header) for line in lines):
        return True
    # A list of one query for each video, as that of MSR-VTT's test.
    videos = [line[header.index("video_id")] for line in lines] if {"video_id", "sentence"} <= set(header) else []
    return len(set(videos)) < len(videos)
