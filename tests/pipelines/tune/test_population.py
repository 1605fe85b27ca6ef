"""What a member of a population trains on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import tune

from pipelines.tune.trials import _SharedCheckpoints
from pipelines.workspace.storage import Storage


def test_weights_that_a_member_took_over_outlive_a_killed_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checkpoint(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        return tmp_path / name

    place = _SharedCheckpoints(Storage(str(tmp_path / "checkpoints")))
    place.keep(checkpoint("own"), 0.25)
    scratch, later = tmp_path / "scratch", tmp_path / "later"
    taken = tune.Checkpoint.from_directory(str(checkpoint("taken over")))
    monkeypatch.setattr(tune, "get_checkpoint", lambda: taken)
    assert (place.latest(scratch) or tmp_path).joinpath("weights").read_text() == "taken over"
    # The next driver has no checkpoint of Tune's.
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    assert (place.latest(later) or tmp_path).joinpath("weights").read_text() == "taken over"
    assert place.best(tmp_path / "best")[1] == 0.25
