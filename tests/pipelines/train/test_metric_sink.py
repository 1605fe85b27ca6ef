from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.train.layout import HISTORY
from pipelines.train.metric_sink import History, Point


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def points(*steps: int, loss: float) -> list[Point]:
    return [(step, {"train/loss": loss + step}) for step in steps]


def recorded(storage: Storage, name: str = "train/loss") -> dict[int, float]:
    records = [json.loads(line) for line in storage.read_bytes(HISTORY).splitlines()]
    found = [(record["step"], record[name]) for record in records if name in record]
    assert len(found) == len(dict(found)), "a step has one value"
    return dict(found)


def test_points_are_kept_in_the_order_they_came(storage: Storage) -> None:
    history = History(storage)
    history.extend(points(5, 10, loss=0))
    history.extend([])
    history.extend(points(15, loss=0))
    assert list(recorded(storage).items()) == [(5, 5), (10, 10), (15, 15)]


def test_nothing_is_written_before_the_first_point(storage: Storage) -> None:
    History(storage).extend([])
    assert not storage.exists(HISTORY)


def test_a_restart_goes_on_with_the_history(storage: Storage) -> None:
    History(storage).extend(points(5, 10, loss=0))
    History(storage).extend(points(15, loss=0))
    assert recorded(storage) == {5: 5, 10: 10, 15: 15}


def test_steps_that_are_done_again_replace_the_old_ones(storage: Storage) -> None:
    History(storage).extend(points(5, 10, 15, loss=0))
    again = History(storage)
    again.extend(points(10, loss=100))
    assert recorded(storage) == {5: 5, 10: 110, 15: 15}
    again.extend(points(15, 20, loss=100))
    assert recorded(storage) == {5: 5, 10: 110, 15: 115, 20: 120}


def test_other_curves_of_a_step_stay(storage: Storage) -> None:
    history = History(storage)
    history.extend([(10, {"train/loss": 1.0, "epoch": 0.9})])
    history.extend([(10, {"validation/score": 50.0, "epoch": 1.0})])
    history.extend([(10, {"train/gradient_norm": 3.0})])
    assert recorded(storage) == {10: 1.0}
    assert recorded(storage, "validation/score") == {10: 50.0}
    assert recorded(storage, "epoch") == {10: 1.0}
