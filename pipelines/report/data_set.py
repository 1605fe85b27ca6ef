"""What the page says about the data set: sizes of the splits, lengths, frequent words.

Each function takes the rows of the manifest; ``seen`` holds what decoding found in their files, by ``video_id``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.recipe.data import SPLITS
from pipelines.report.charts import Chart, histogram
from pipelines.report.content import SplitRow

_MOST_WORDS = 30
_ROWS_AT_ONCE = 100_000


def splits(manifest: pa.Table) -> list[SplitRow]:
    """The numbers of videos, captions and questions of each split that is not empty."""
    rows = []
    asked = pc.list_flatten(manifest.column("questions")).to_pylist()
    questions = Counter(question["split"] for question in asked)
    for split in SPLITS:
        part = manifest.filter(pc.equal(manifest.column("split"), split))
        captions = pc.sum(pc.list_value_length(part.column("captions"))).as_py() or 0
        if len(part) or questions[split]:
            rows.append(SplitRow(split, len(part), captions, questions[split]))
    return rows


def statistics(manifest: pa.Table, seen: pa.Table) -> list[Chart]:
    """How long captions and videos are, by split."""
    charts = []
    for split in SPLITS:
        part = manifest.filter(pc.equal(manifest.column("split"), split))
        lengths = pc.list_value_length(_words(pc.list_flatten(part.column("captions")))).to_numpy()
        if len(lengths):
            charts.append(histogram(f"words of a caption, {split}", lengths))
        seconds = _durations(part, seen)
        if len(seconds):
            charts.append(histogram(f"seconds of a video, {split}", seconds))
    return charts


def _durations(part: pa.Table, seen: pa.Table) -> np.ndarray:
    """Seconds of the files of some rows of the manifest."""
    mine = seen.filter(pc.is_in(seen.column("video_id"), part.column("video_id").combine_chunks()))
    seconds = pc.divide(mine.column("source_frames").cast(pa.float64()), mine.column("source_fps"))
    return np.asarray(seconds.drop_null())


def most_frequent_words(manifest: pa.Table) -> list[tuple[str, int]]:
    """The most frequent words of all captions, each with how often it occurs."""
    counts: Counter[str] = Counter()
    # In parts, because all words of a large data set at once would take much memory.
    for rows in manifest.select(["captions"]).to_batches(max_chunksize=_ROWS_AT_ONCE):
        words = pc.utf8_lower(pc.utf8_trim(pc.list_flatten(_words(pc.list_flatten(rows.column(0)))), ".,!?;:\"'()"))
        for found in pc.value_counts(words).to_pylist():
            counts[found["values"]] += found["counts"]
    return counts.most_common(_MOST_WORDS)


def _words(texts: Any) -> Any:
    """The words of each text."""
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
