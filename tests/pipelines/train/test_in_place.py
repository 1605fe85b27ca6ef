"""Training in the caller's process: what it keeps, what it tells, and how it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.models.weights import WEIGHTS
from pipelines.train.checkpoint_folder import CheckpointFolder
from pipelines.train.history import Point
from pipelines.train.in_place import train_in_place
from pipelines.train.loop import SCORE, UNSCORED, LoopSettings, NonFiniteLossError
from pipelines.workspace.storage import Storage
from tests.pipelines.train.test_loop import EPOCHS, STEPS, LineTask, Recorder, train

CPU = torch.device("cpu")


class EndedError(Exception):
    """Stands for Tune, which ends a trial in the call that reports."""


@dataclass
class Listener:
    """Hears points; ends the training at a validation."""

    place: CheckpointFolder
    end_at_epoch: float | None = None
    points: list[Point] = field(default_factory=list)

    def __call__(self, points: list[Point]) -> None:
        self.points += points
        for _, metrics in points:
            if SCORE in metrics and metrics["epoch"] == self.end_at_epoch:
                raise EndedError

    def curve(self, name: str) -> dict[int, float]:
        found = [(step, metrics[name]) for step, metrics in self.points if name in metrics]
        assert len(dict(found)) == len(found), "no point is told twice"
        return dict(found)


def run(task: LineTask, listener: Listener, **settings: int) -> None:
    options = LoopSettings(**{"log_every_steps": 1, **settings})
    train_in_place(task, device=CPU, settings=options, place=listener.place, receive=listener)


@pytest.fixture
def place(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(Storage(str(tmp_path / "place")))


def test_it_trains_what_the_loop_trains_and_keeps_the_best(tmp_path: Path, place: CheckpointFolder) -> None:
    recorder, listener = Recorder(tmp_path / "loop"), Listener(place)
    (tmp_path / "loop").mkdir()
    expected = train(LineTask(), recorder)
    run(LineTask(), listener)
    for name in ("train/loss", SCORE):
        assert listener.curve(name) == recorder.curve(name)
    folder, score = place.best(tmp_path)
    assert score == max(recorder.scores)
    best = recorder.scores.index(score)
    for name, value in load_file(tmp_path / "loop" / str(best) / WEIGHTS).items():
        assert torch.equal(load_file(folder / WEIGHTS)[name], value)
    latest = place.latest(tmp_path)
    assert latest is not None
    assert torch.equal(load_file(latest / WEIGHTS)["1.weight"], expected["1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [3 / 5, 1, 2 + 4 / 7])
def test_one_that_is_ended_at_a_report_goes_on_from_there(
    tmp_path: Path, place: CheckpointFolder, epoch: float
) -> None:
    whole = Listener(CheckpointFolder(Storage(str(tmp_path / "whole"))))
    run(LineTask(), whole, validations_per_epoch=2)
    first, second = Listener(place, end_at_epoch=epoch), Listener(place)
    before, after = LineTask(), LineTask()
    with pytest.raises(EndedError):
        run(before, first, validations_per_epoch=2)
    run(after, second, validations_per_epoch=2)
    assert before.seen + after.seen == [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS + epoch)]
    assert first.curve("train/loss") | second.curve("train/loss") == whole.curve("train/loss")
    assert first.curve(SCORE) | second.curve(SCORE) == whole.curve(SCORE)


def test_a_loss_that_is_not_finite_is_told_after_all_points(place: CheckpointFolder) -> None:
    listener = Listener(place)
    with pytest.raises(NonFiniteLossError):
        run(LineTask(poisoned=(1, 2)), listener)
    assert list(listener.curve("train/loss")) == [1, 2, 3, 4, 5, 6, 7]


def write(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "weights").write_text(text)
    return folder


def test_of_equal_scores_the_last_is_the_best_and_unscored_ones_never(tmp_path: Path, place: CheckpointFolder) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        place.best(tmp_path)
    assert place.latest(tmp_path) is None
    for number, (score, best) in enumerate(
        [(UNSCORED, "0"), (1.0, "1"), (UNSCORED, "1"), (2.0, "3"), (2.0, "4"), (1.0, "4"), (UNSCORED, "4")]
    ):
        place.keep(write(tmp_path / str(number), str(number)), score)
        found, _ = place.best(tmp_path)
        latest = place.latest(tmp_path)
        assert latest is not None
        assert ((found / "weights").read_text(), (latest / "weights").read_text()) == (best, str(number))
    # The best and the latest, and nothing else.
    assert len([path for path in (tmp_path / "place").iterdir() if path.is_dir()]) == 2
