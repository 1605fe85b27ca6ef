"""Whatever happens on one of two workers, the other one stops with it instead of waiting for it."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hbi_models.retrieval import RetrievalModel
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import gather_objects, rank
from pipelines.train.loop import LoopSettings, NonFiniteLossError, TrainingLoop
from pipelines.train.pairs import PairBatch
from pipelines.train.retrieval import RetrievalTask
from pipelines.workspace.storage import Storage
from tests.distributed.processes import run_ranks
from tests.tiny_retrieval import retrieval_config, retrieval_task, write_split_data

pytestmark = pytest.mark.fault

CPU = torch.device("cpu")
CAPTIONS = (1,) * 8


@dataclass
class Recorder:
    """Counts what the loop reports."""

    checkpoints: list[float] = field(default_factory=list)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def checkpoint(self, folder: Path | None, score: float) -> None:
        self.checkpoints.append(score)


class UnreadableBatch(RetrievalTask):
    """The second worker cannot read its second batch."""

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[PairBatch, None, None]:
        for step, batch in enumerate(super().batches(position, device)):
            if step == 1 and rank() == 1:
                raise ValueError("an image cannot be used")
            yield batch


def training(folder: Path, kind: type[RetrievalTask] = RetrievalTask) -> TrainingLoop[PairBatch]:
    task = retrieval_task(Storage(str(folder)), retrieval_config(folder), CAPTIONS, epochs=1)
    return TrainingLoop(kind(**vars(task)), device=CPU, reporter=Recorder(), settings=LoopSettings())


def error_of(loop: TrainingLoop[PairBatch]) -> dict[str, Any]:
    """What the training raised, and how far it came."""
    try:
        loop.run()
    except NonFiniteLossError as error:
        found = {"kind": "NonFiniteLossError", "message": str(error), "report": dict(error.report)}
    except Exception as error:  # noqa: BLE001 - the test looks at it
        found = {"kind": type(error).__name__, "message": str(error)}
    else:
        found = {"kind": "none", "message": ""}
    # A worker that was still in another collective would not come to this one.
    assert gather_objects(rank()) == [0, 1]
    return {**found, "step": loop.position.step, "checkpoints": len(loop.reporter.checkpoints)}  # type: ignore[attr-defined]


def diverged(folder: Path) -> dict[str, Any]:
    """The exact game of the second worker has logits that are no numbers."""
    loop = training(folder)
    if rank() == 1:
        assert isinstance(loop.core, RetrievalModel)
        with torch.no_grad():
            loop.core.text_importance["action"][2].bias.fill_(torch.nan)  # type: ignore[index, union-attr, operator]
    return error_of(loop)


def unreadable_validation(folder: Path) -> dict[str, Any]:
    """The second worker finds no frames to validate with."""
    loop = training(folder)
    task = loop.task
    assert isinstance(task, RetrievalTask)
    if rank() == 1:
        elsewhere = replace(task.data, frames_pool=Storage(str(folder / "nothing")))
        vars(task)["_validation"] = elsewhere.captions("val")
    return error_of(loop)


def unwritable_checkpoint(folder: Path) -> dict[str, Any]:
    """The first worker has no place for a checkpoint."""
    loop = training(folder)
    if rank() == 0:
        tempfile.tempdir = str(folder / "nowhere")
    try:
        return error_of(loop)
    finally:
        tempfile.tempdir = None


def other_weights(folder: Path) -> dict[str, Any]:
    """The first worker cannot make its model."""
    task = retrieval_task(Storage(str(folder)), retrieval_config(folder), CAPTIONS, epochs=1)
    if rank() == 0:
        task = replace(task, training=replace(task.training, init_checkpoint=str(folder / "nothing")))
    try:
        TrainingLoop(task, device=CPU, reporter=Recorder(), settings=LoopSettings())
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "none", "message": ""}


def everything(folder: Path) -> dict[str, Any]:
    """One after the other in the same two processes: each leaves them in step."""
    return {
        "diverged": diverged(folder),
        "batch": error_of(training(folder, UnreadableBatch)),
        "validation": unreadable_validation(folder),
        "checkpoint": unwritable_checkpoint(folder),
        "model": other_weights(folder),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("failing-rank")
    # A video to validate with for each worker, and a share that is empty nowhere.
    write_split_data(folder, {"train": CAPTIONS, "val": (1, 1)})
    return run_ranks(everything, folder, folder, world_size=2)


def test_numbers_that_are_none_in_the_game_of_one_worker_end_the_training_of_both(found: list[dict[str, Any]]) -> None:
    for rank_found in found:
        result = rank_found["diverged"]
        assert (result["kind"], result["step"]) == ("NonFiniteLossError", 0)
        assert "the loss is nan at step 0" in result["message"]
        assert result["report"]["ranks"][-1]["rank"] == 1
        assert result["report"]["ranks"][-1]["parts"]["action_interaction"] == "nan"


@pytest.mark.parametrize(
    ("what", "failing", "step", "checkpoints", "words"),
    [
        ("batch", 1, 1, 0, "ValueError: an image cannot be used"),
        ("validation", 1, 2, 0, "LostRowsError: "),
        ("checkpoint", 0, 2, 0, "FileNotFoundError: "),
    ],
)
def test_what_fails_on_one_worker_is_said_by_both(
    found: list[dict[str, Any]], what: str, failing: int, step: int, checkpoints: int, words: str
) -> None:
    own, other = found[failing][what], found[1 - failing][what]
    kind, message = words.split(": ", 1)
    assert own["kind"] == kind and own["message"].startswith(message)
    assert other["kind"] == "OtherRankError" and other["message"].startswith(f"rank {failing}: {words}")
    assert (own["step"], own["checkpoints"]) == (other["step"], other["checkpoints"]) == (step, checkpoints)


def test_a_model_that_one_worker_cannot_make_ends_both(found: list[dict[str, Any]]) -> None:
    assert found[0]["model"]["kind"] == "FileNotFoundError"
    assert found[1]["model"]["kind"] == "OtherRankError"
    assert "rank 0: FileNotFoundError" in found[1]["model"]["message"]
