from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.train.files import HISTORY
from pipelines.train.history import History, Point
from pipelines.workspace import line_log
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.line_log import LineLog
from pipelines.workspace.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of four lines, so that a few points fill several."""
    monkeypatch.setattr(line_log, "_LINES", 4)


def points(*steps: int, loss: float) -> list[Point]:
    return [(step, {"train/loss": loss + step}) for step in steps]


def recorded(storage: Storage, name: str = "train/loss") -> dict[int, float]:
    found = [(step, metrics[name]) for step, metrics in History(storage).points if name in metrics]
    assert len(found) == len(dict(found)), "a step has one value"
    return dict(found)


def test_points_are_kept_by_step(storage: Storage) -> None:
    history = History(storage)
    history.extend(points(5, 10, loss=0))
    history.extend([])
    history.extend(points(15, loss=0))
    assert list(recorded(storage).items()) == [(5, 5), (10, 10), (15, 15)]


def test_nothing_is_written_before_the_first_point(storage: Storage) -> None:
    history = History(storage)
    history.extend([])
    history.complete([])
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


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_what_is_added_to_a_long_history_leaves_its_full_files_alone(
    place: str, tmp_path: Path, s3_bucket: str, short_files: None
) -> None:
    storage = Storage(str(tmp_path) if place == "folder" else f"{s3_bucket}/history")
    history = History(storage)
    for step in range(1, 11):
        history.extend(points(step, loss=0))
    names = ["history-00001.jsonl", "history-00002.jsonl", "history.jsonl"]
    assert storage.files() == names
    assert [len(storage.read_bytes(name).splitlines()) for name in names] == [4, 2, 4]
    History(storage).extend(points(*range(11, 20), loss=0))
    assert recorded(storage) == {step: step for step in range(1, 20)}


def test_the_points_that_were_lost_are_added_when_the_training_ends(storage: Storage, short_files: None) -> None:
    history = History(storage)
    history.extend(points(*range(1, 9), loss=0))
    # The machine was killed on the way: 9 and 10 never came, and 8 was done again by another.
    history = History(storage)
    history.extend(points(11, 12, loss=0))
    history.complete([*points(*range(1, 13), loss=100), (10, {"validation/score": 50.0})])
    assert storage.files() == [HISTORY], "a finished history is one file"
    assert len(storage.read_bytes(HISTORY).splitlines()) == 12
    assert recorded(storage) == {step: step + 100 if step in (9, 10) else step for step in range(1, 13)}
    assert recorded(storage, "validation/score") == {10: 50.0}


def test_one_that_was_killed_while_it_finished_the_history_left_nothing_wrong(
    storage: Storage, short_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    History(storage).extend(points(*range(1, 14), loss=0))

    delete = Storage.delete

    def dying_after(deleted: int) -> Callable[[Storage, str], None]:
        calls = iter([True] * deleted)

        def delete_or_die(self: Storage, path: str) -> None:
            if not next(calls, False):
                raise KeyboardInterrupt
            delete(self, path)

        return delete_or_die

    for deleted in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "delete", dying_after(deleted))
            with pytest.raises(KeyboardInterrupt):
                History(storage).complete([])
        again = History(storage)
        again.extend(points(14 + deleted, loss=0))
        assert recorded(storage) == {step: step for step in range(1, 15 + deleted)}


def test_one_who_reads_while_the_log_is_finished_gets_all(
    storage: Storage, short_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LineLog(storage, "log.jsonl")
    log.append(range(10))
    read = Storage.read_bytes

    def finished_meanwhile(self: Storage, path: str) -> bytes:
        monkeypatch.setattr(Storage, "read_bytes", read)
        content = read(self, path)
        LineLog(storage, "log.jsonl").replace(range(10))
        return content

    monkeypatch.setattr(Storage, "read_bytes", finished_meanwhile)
    assert LineLog(storage, "log.jsonl").records() == list(range(10))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"5\n", b'{"loss": 1.0}\n', b'{"step": 1, "loss": "1"}\n'])
def test_a_damaged_history_is_named(storage: Storage, content: bytes) -> None:
    storage.write_bytes(HISTORY, content)
    with pytest.raises(DamagedFileError, match=f"{storage.uri}/{HISTORY}"):
        History(storage)
