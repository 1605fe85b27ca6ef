"""Checkpoints of Ray Train whose list was torn by a machine that stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.recipe.resources import TrainResources
from pipelines.tracker import StageTracker
from pipelines.train.checkpoints import CURVE, UNSCORED, load_curve
from pipelines.train.files import RAY_SNAPSHOT, RAY_TRAIN, SCORE
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.train.trainer import train_task
from pipelines.train.unlisted import best_checkpoint, place_to_go_on_from, unlisted_checkpoints
from pipelines.workspace.storage import Storage
from tests.tiny_estimator import estimator_task, write_labels

pytestmark = pytest.mark.fault

LIST = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_3", "metrics": {}}]}


@dataclass
class InRaysFolder:
    """Keeps every checkpoint where Ray Train would put it."""

    folder: Path
    scores: dict[str, float] = field(default_factory=dict)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def checkpoint(self, folder: Path | None, score: float) -> None:
        assert folder is not None
        name = f"checkpoint_{len(self.scores)}"
        shutil.copytree(folder, self.folder / RAY_TRAIN / name)
        self.scores[name] = score


@pytest.fixture(name="trained", scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Two epochs of three steps, a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("trained")
    write_labels(folder)
    recorder = InRaysFolder(folder)
    settings = LoopSettings(checkpoint_every_steps=1, log_every_steps=1)
    TrainingLoop(estimator_task(folder), device=torch.device("cpu"), reporter=recorder, settings=settings).run()
    return folder, recorder.scores


@pytest.fixture(name="output")
def copied(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> Storage:
    shutil.copytree(trained[0] / RAY_TRAIN, tmp_path / RAY_TRAIN)
    return Storage(str(tmp_path))


def test_unlisted_checkpoints_have_the_scores_that_they_were_kept_with(
    output: Storage, trained: tuple[Path, dict[str, float]]
) -> None:
    found = unlisted_checkpoints(output, {"checkpoint_0"})
    assert [checkpoint.position.step for checkpoint in found] == [2, 3, 4, 5, 6]
    assert {checkpoint.name: checkpoint.score for checkpoint in found} == {
        name: score for name, score in trained[1].items() if name != "checkpoint_0"
    }
    assert sum(checkpoint.score > UNSCORED for checkpoint in found) == 2


def test_of_equal_checkpoints_the_last_is_the_best(output: Storage) -> None:
    for name in ("checkpoint_2", "checkpoint_5"):
        folder = output.folder(RAY_TRAIN, name)
        points = [json.loads(line) for line in folder.read_bytes(CURVE).splitlines()]
        lines = [{**point, SCORE: 9.0} if SCORE in point else point for point in points]
        folder.write_bytes(CURVE, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    assert best_checkpoint(output, []) == ("checkpoint_5", 9.0)
    assert best_checkpoint(output, [("checkpoint_2", 9.0)]) == ("checkpoint_2", 9.0), (
        "a list goes on from what was lost"
    )
    assert best_checkpoint(output, [("a", 9.0), ("b", 9.0), ("c", UNSCORED)]) == ("b", 9.0)
    assert best_checkpoint(output, [("a", 8.0)]) == ("checkpoint_5", 9.0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"ray_version": "2.60.0", "checkpoint_resu',
        b"[]",
        b'{"checkpoint_results": [{"checkpoint_dir_name": "gone"}]}',
    ],
    ids=["empty", "half", "foreign", "of-missing-folders"],
)
def test_a_torn_list_is_replaced_by_the_furthest_whole_checkpoint(output: Storage, content: bytes) -> None:
    output.write_bytes(RAY_SNAPSHOT, content)
    # The copy of the last one was interrupted, too.
    weights = Path(output.path(RAY_TRAIN, "checkpoint_5", "model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-40])
    start = place_to_go_on_from(output)
    assert start is not None
    assert start.path().endswith(f"{RAY_TRAIN}/checkpoint_4")
    # Otherwise Ray would stop at it.
    assert not output.exists(RAY_SNAPSHOT)


def test_a_whole_list_is_rays_own(output: Storage) -> None:
    output.write_json(RAY_SNAPSHOT, LIST)
    assert place_to_go_on_from(output) is None
    assert output.exists(RAY_SNAPSHOT)


def test_without_any_whole_checkpoint_the_training_starts_again(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    assert place_to_go_on_from(output) is None
    output.write_bytes(RAY_SNAPSHOT, b"{")
    assert place_to_go_on_from(output) is None
    assert not output.exists(RAY_SNAPSHOT)


def test_going_on_from_there_ends_as_an_uninterrupted_training(
    output: Storage, trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    for name in ("checkpoint_4", "checkpoint_5"):
        output.delete(f"{RAY_TRAIN}/{name}")
    start = place_to_go_on_from(output)
    assert start is not None
    recorder = InRaysFolder(tmp_path / "again")
    settings: Any = LoopSettings(checkpoint_every_steps=1, log_every_steps=1)
    task = estimator_task(trained[0])
    cpu = torch.device("cpu")
    TrainingLoop(task, device=cpu, reporter=recorder, settings=settings, resume=Path(start.path())).run()
    last, whole = (
        path / RAY_TRAIN / name for path, name in ((tmp_path / "again", "checkpoint_1"), (trained[0], "checkpoint_5"))
    )
    assert (last / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    curves = [[{k: v for k, v in m.items() if "throughput" not in k} for _, m in load_curve(p)] for p in (last, whole)]
    assert curves[0] == curves[1]


@pytest.mark.slow_fault
def test_a_worker_group_goes_on_from_there_and_keeps_the_best_of_all(
    output: Storage, trained: tuple[Path, dict[str, float]], ray_local: object
) -> None:
    """Ray Train itself: its torn list, and a best checkpoint that only the folders know of."""
    for name in ("checkpoint_4", "checkpoint_5"):
        output.delete(f"{RAY_TRAIN}/{name}")
    output.write_bytes(RAY_SNAPSHOT, b'{"checkpoint_results": [')
    best = output.folder(RAY_TRAIN, "checkpoint_2")
    points = [json.loads(line) for line in best.read_bytes(CURVE).splitlines()]
    lines = [{**point, SCORE: 9.0} if SCORE in point else point for point in points]
    best.write_bytes(CURVE, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    metrics = train_task(
        estimator_task(trained[0]),
        output,
        StageTracker(),
        resources=TrainResources(workers=1, gpus_per_worker=0.0),
        settings=LoopSettings(log_every_steps=1),
    )
    assert metrics["best/score"] == 9.0
    assert output.read_bytes("model/model.safetensors") == best.read_bytes("model.safetensors")
    # The last one is Ray's, and the one that an uninterrupted training ends with.
    last = output.folder(RAY_TRAIN, unlisted_checkpoints(output, ())[-1].name)
    whole = trained[0] / RAY_TRAIN / "checkpoint_5" / "model.safetensors"
    assert last.read_bytes("model.safetensors") == whole.read_bytes()
