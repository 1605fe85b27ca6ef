"""Batches that no loss was made for, and losses that are no numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.models.weights import load_weights
from pipelines.recipe.resources import TrainResources
from pipelines.tracker import StageTracker
from pipelines.train.checkpoints import Position
from pipelines.train.files import NON_FINITE
from pipelines.train.loop import LoopSettings, NonFiniteLossError, TrainingLoop
from pipelines.train.trainer import train_task
from pipelines.train.trial_host import TrialHost
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.storage import Storage
from tests.steep_task import SteepTask
from tests.tiny_estimator import estimator_task, write_labels
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

pytestmark = pytest.mark.fault

CPU = torch.device("cpu")


@dataclass
class Recorder:
    """Keeps the losses, and counts the checkpoints."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses += [value for name, value in metrics.items() if name == "train/loss"]

    def checkpoint(self, folder: Path | None, score: float) -> None:
        self.scores.append(score)


def spoil_a_label(folder: Path, video_id: str) -> None:
    """Puts a value that is no number into the label of a pair."""
    storage = Storage(str(folder))
    index = storage.read_table(f"labels-index/{INDEX_FILE}")
    for shard in set(index.column("shard").to_pylist()):
        table = storage.read_table(f"labels/{shard}")
        rows = table.to_pylist()
        for row in rows:
            if row["video_id"] == video_id:
                row["interaction"][0] = math.nan
        storage.write_table(f"labels/{shard}", pa.Table.from_pylist(rows, schema=table.schema), row_group_size=1)


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_and_the_ids_of_the_batch(tmp_path: Path) -> None:
    """The whole of a training stage but Ray's worker group, which ``test_runs`` adds."""
    write_labels(tmp_path)
    task = estimator_task(tmp_path, epochs=3)
    # A pair of the second half of the first epoch, so that a checkpoint comes before it.
    batches = list(task.batches(Position()))[: task.steps(0)]
    offender = batches[-1].names[0]
    spoil_a_label(tmp_path, offender.split(",")[0])
    output = Storage(str(tmp_path / "estimator"))
    with pytest.raises(NonFiniteLossError) as failure:
        train_task(
            estimator_task(tmp_path, epochs=3),
            output,
            StageTracker(),
            resources=TrainResources(workers=1, gpus_per_worker=0.0),
            settings=LoopSettings(checkpoint_every_steps=1),
            trial=TrialHost(),
        )
    message, report = str(failure.value), output.read_json(NON_FINITE)
    assert f"the loss is nan at step {task.steps(0) - 1}" in message
    assert str(tmp_path / "estimator" / NON_FINITE) in message
    assert (report["what"], report["step"], report["value"]) == ("loss", task.steps(0) - 1, "nan")
    (part,) = report["ranks"]
    assert part["parts"] == {"loss": "nan"}
    assert part["rows"] == batches[-1].names
    assert offender in part["rows"]
    assert report["last_checkpoint"] in message
    places = Storage(report["last_checkpoint"])
    checkpoint = Path(places.path(places.read_json("index.json")["latest"]))
    position = json.loads((checkpoint / "position.json").read_text())
    assert position["step"] == task.steps(0) - 1
    model = task.make_model()
    load_weights(checkpoint, model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # Readers of other languages know no NaN.
    json.loads((tmp_path / "estimator" / NON_FINITE).read_text(), parse_constant=pytest.fail)


def test_a_gradient_that_is_no_number_never_reaches_a_weight() -> None:
    recorder = Recorder()
    settings = LoopSettings(checkpoint_every_steps=1)
    loop = TrainingLoop(SteepTask(steep_at=2), device=CPU, reporter=recorder, settings=settings)
    with pytest.raises(
        NonFiniteLossError, match=r"the gradient is (nan|inf) at step 2, in a batch of batch 2 of rank 0"
    ):
        loop.run()
    assert all(parameter.isfinite().all() for parameter in loop.core.parameters())
    assert len(recorder.scores) == 2


def with_captions(folder: Path, captions: list[str]) -> None:
    """Replaces all captions in the manifest of the tiny data set."""
    storage = Storage(str(folder))
    table = storage.read_table(f"manifest/{MANIFEST_FILE}")
    rows = [{**row, "captions": captions[: len(row["captions"])]} for row in table.to_pylist()]
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(rows, schema=table.schema))


def train(folder: Path, captions: tuple[int, ...], **settings: Any) -> Recorder:
    recorder = Recorder()
    task = retrieval_task(Storage(str(folder)), retrieval_config(folder), captions, epochs=1, **settings)
    model = TrainingLoop(task, device=CPU, reporter=recorder, settings=LoopSettings(log_every_steps=1)).run()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return recorder


def test_captions_without_any_word_are_trained_with(tmp_path: Path) -> None:
    """What an annotation holds besides spaces may vanish when the text is cleaned: start and end token are left."""
    captions = (2, 2, 2, 2)
    write_split_data(tmp_path, {"train": captions, "val": (2, 1)})
    with_captions(tmp_path, ["&nbsp;", "\0"])
    recorder = train(tmp_path, captions)
    assert recorder.losses and np.isfinite(recorder.losses).all()
    assert np.isfinite(recorder.scores).all()


def test_a_batch_with_one_sample_is_trained_with(tmp_path: Path) -> None:
    write_split_data(tmp_path, {"train": (2,), "val": (1,)})
    recorder = train(tmp_path, (2,), batch_size=1)
    assert len(recorder.losses) == 2
    assert np.isfinite(recorder.losses).all()
    assert recorder.scores == [100.0], "the only video is found for its only caption"
