"""The arithmetic of a stage is what its recipe says, on a CPU as on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from pipelines.labels import LabelSettings, LabelShard
from pipelines.recipe.labels import LabelsConfig
from pipelines.recipe.training import Precision
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.workspace.records import INDEX_FILE, LABELS
from pipelines.workspace.shards import ShardPool
from tests.steep_task import SteepTask
from tests.tiny_retrieval import retrieval_config, write_split_data


class Silent:
    """Takes what a training reports."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def checkpoint(self, folder: Path | None, score: float) -> None: ...


class Watched(SteepTask):
    """Notes in which type matrix products are computed."""

    def loss(self, model: nn.Module, batch: int, device: torch.device, *, watch: bool = False) -> Mapping[str, Tensor]:
        self.dtype = (torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)).dtype
        return super().loss(model, batch, device)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_training_computes_in_the_stated_precision(precision: Precision) -> None:
    task = Watched()
    settings = LoopSettings(precision=precision)
    TrainingLoop(task, device=torch.device("cpu"), reporter=Silent(), settings=settings).run()
    assert task.dtype == getattr(torch, precision)


def label(folder: Path, precision: Precision) -> dict[str, list[Any]]:
    """Labels of three videos, by column."""
    data = write_split_data(folder / "data", {"train": (2, 1, 3)})
    videos = data.read_table(f"frames/{INDEX_FILE}").sort_by("video_id")
    videos = videos.append_column("frames_key", videos.column("key")).append_column(
        "texts", pa.array([["a red circle"], ["a small square moves left"], ["blue"]])
    )
    pool = ShardPool(data.folder(precision), LABELS)
    settings = LabelSettings(retrieval_config(folder), LabelsConfig(precision=precision), seed=0)
    LabelShard(settings, data.folder("pool"), pool)(videos)
    (name,) = pool.storage.files(suffix=".parquet")
    return pool.storage.read_table(name).to_pydict()


def test_labels_are_made_in_the_stated_precision(tmp_path: Path) -> None:
    exact, rounded = label(tmp_path, "float32"), label(tmp_path, "bfloat16")
    assert exact["video_id"] == rounded["video_id"]
    one, other = (np.concatenate(labels["similarity"]) for labels in (exact, rounded))
    # Cosines of features that were rounded to 8 bits on their way.
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05)


def test_float32_convolutions_are_not_rounded_on_gpus() -> None:
    assert torch.backends.cudnn.allow_tf32 is False


def test_the_default_depends_on_no_device() -> None:
    assert LabelsConfig().precision == LoopSettings().precision == "float32"
    with pytest.raises(TypeError):
        replace(LoopSettings(), bfloat16=True)
