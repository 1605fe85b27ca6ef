"""Looking at a workspace, and clearing it up, as a user does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest

from jobs import gc, status
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.locks import held
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import read, run, write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Six clips of the user's own, one of which is none."""
    rows = []
    for number in range(6):
        path = tmp_path / f"clip{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width = stream.height = 32
            for level in range(8):
                image = np.full((32, 32, 3), 20 * level + number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        rows.append([path.name, f"clip number {number}", "test" if number > 3 else "train"])
    (tmp_path / "clip2.mp4").write_text("no video")
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "caption", "split"], *rows])
    return write_recipe(
        tmp_path,
        data={"dataset": "captions_file", "annotations": str(tmp_path / "captions.csv"), "validation_videos": 0},
    )


def _status(capsys: pytest.CaptureFixture[str], workspace: str, *options: str) -> str:
    capsys.readouterr()
    assert status.main(["--workspace", workspace, *options]) == 0
    return capsys.readouterr().out


def test_status_tells_states_holders_and_errors(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read(recipe_file, "--frames.max_error_fraction", "0.5")
    with pytest.raises(ValueError, match="holds no run"):
        status.main(["--workspace", recipe.workspace])
    outcomes = run(recipe, until_stage="frames")
    out = _status(capsys, recipe.workspace)
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "done" in lines["manifest"]
    assert outcomes["frames"].step.fingerprint in lines["frames"]
    assert "never run" in lines["retrieval"]
    assert "  frames: 1 undecodable, such as clip2" in out

    workspace = Storage(recipe.workspace)
    (stages,) = (report["stages"] for report in json.loads(_status(capsys, recipe.workspace, "--json")))
    waiting = next(stage for stage in stages if stage["stage"] == "retrieval")
    with held(workspace, f"retrieval-{waiting['fingerprint']}"):
        out = _status(capsys, recipe.workspace)
    assert "running" in next(line for line in out.splitlines() if line.startswith("retrieval"))

    artifact = outcomes["frames"].artifact.storage
    artifact.write_bytes(ARTIFACT, b"{")
    out = _status(capsys, recipe.workspace)
    assert "damaged" in next(line for line in out.splitlines() if line.startswith("frames"))


def test_gc_lists_and_removes_what_no_run_needs(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--frames.max_error_fraction", "0.5"]
    few = read(recipe_file, *options, "--frames.jpeg_quality", "50")
    recipe = read(recipe_file, *options)
    for each in (few, recipe):
        run(each, until_stage="frames")
    assert gc.main(["--workspace", recipe.workspace]) == 0
    assert "Nothing is left over" in capsys.readouterr().out
    pools = Path(recipe.workspace) / "shards"
    assert len(list(pools.iterdir())) == 2
    assert gc.main(["--workspace", recipe.workspace, "--keep_latest", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 folders" in out
    assert len(list(pools.iterdir())) == 2
    assert gc.main(["--workspace", recipe.workspace, "--remove"]) == 0
    assert "Removed 2 folders" in capsys.readouterr().out
    assert len(list(pools.iterdir())) == 1
    assert {outcome.action for outcome in run(recipe, until_stage="frames").values()} == {"skipped"}
