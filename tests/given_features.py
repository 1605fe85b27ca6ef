"""Files of features that another model made, small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORD_DIM, FRAME_DIM = 12, 20


def rows_of(counts: Mapping[str, Sequence[int]], *, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns rows of videos and of captions: by split, the number of captions of each video."""
    random = np.random.default_rng(seed)

    def tokens(most: int, dim: int) -> list[list[float]]:
        return random.normal(size=(random.integers(1, most + 1), dim)).astype(np.float32).tolist()

    videos, captions = [], []
    for split, numbers in counts.items():
        for number, count in enumerate(numbers):
            name = f"{split}{number}"
            frames = tokens(6, FRAME_DIM)
            videos.append(
                {
                    "video_id": name,
                    "split": split,
                    "frames": frames,
                    "times": [float(time) for time in range(len(frames))],
                }
            )
            captions += [
                {
                    "video_id": name,
                    "caption_id": f"{name}-{caption}",
                    "caption": f"caption {caption} of {name}",
                    "words": tokens(9, WORD_DIM),
                }
                for caption in range(count)
            ]
    return videos, captions


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], *, row_group_size: int = 4) -> None:
    """Writes rows as any program would, types as pyarrow finds them."""
    path.parent.mkdir(exist_ok=True, parents=True)
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, path, row_group_size=row_group_size)
