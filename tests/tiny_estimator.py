"""Random labels, and the training of an estimator on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hbi_models.optimizer_config import OptimizerConfig
from pipelines.recipe.training import EstimatorTrainingConfig
from pipelines.train.estimator import EstimatorTask
from pipelines.workspace.records import INDEX_FILE, LABELS
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

TRAIN_PAIRS, VALIDATION_PAIRS = 24, 5
MAX_WORDS, MAX_FRAMES = 6, 5


def label_rows() -> list[dict[str, Any]]:
    """Rows of ``records.LABELS`` in the order of their keys; pairs have different lengths."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(TRAIN_PAIRS + VALIDATION_PAIRS):
        words, frames = int(random.integers(3, MAX_WORDS + 1)), int(random.integers(1, MAX_FRAMES + 1))
        rows.append(
            {
                "video_id": f"video{number}",
                "key": f"key{number:02}",
                "caption_index": 0,
                "num_words": words,
                "num_frames": frames,
                "similarity": random.normal(size=words * frames).tolist(),
                "word_logits": random.normal(size=words).tolist(),
                "frame_logits": random.normal(size=frames).tolist(),
                "interaction": random.normal(size=words * frames).tolist(),
            }
        )
    return rows


def write_labels(folder: Path, *, shards: int = 2, validation_pairs: int = VALIDATION_PAIRS) -> None:
    """Commits the labels in so many shards, and their index."""
    storage, rows = Storage(str(folder)), label_rows()
    pool = ShardPool(storage.folder("labels"), LABELS)
    for shard in range(shards):
        pool.commit(rows[shard::shards])
    index = pool.index(["caption_index"]).sort_by("key").slice(0, TRAIN_PAIRS + validation_pairs)
    splits = ["train"] * TRAIN_PAIRS + ["val"] * validation_pairs
    storage.write_table(f"labels-index/{INDEX_FILE}", index.append_column("split", pa.array(splits)))


def estimator_task(folder: Path, **training: Any) -> EstimatorTask:
    """Returns the training on the labels that ``write_labels`` made."""
    storage = Storage(str(folder))
    settings = {"epochs": 2, "batch_size": 8, "optimizer": OptimizerConfig(lr=1e-3), **training}
    return EstimatorTask(
        training=EstimatorTrainingConfig(**settings),
        channels=4,
        seed=5,
        labels=storage.folder("labels"),
        index=storage.folder("labels-index"),
        max_words=MAX_WORDS,
        max_frames=MAX_FRAMES,
        train_pairs=TRAIN_PAIRS,
    )
