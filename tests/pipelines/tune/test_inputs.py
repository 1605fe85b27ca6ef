"""The inputs of trials, which are made beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.graph import make_graph
from pipelines.stages.frames import frames_pool
from pipelines.tracking.address import tracking_uri
from pipelines.workspace.locks import FOLDER
from pipelines.workspace.storage import Storage
from tests.jobs.clips import ClipsFile
from tests.jobs.contents import shards
from tests.jobs.killing import wait_until
from tests.jobs.recipes import read, write_recipe

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault]


def test_a_command_that_is_stopped_ends_the_stage_that_it_runs_beside_its_trials(tmp_path: Path) -> None:
    data = ClipsFile(tmp_path)
    data.add(200)
    path = write_recipe(tmp_path, data={**data.settings, "validation_videos": 20})
    recipe = read(path)
    workspace = Storage(recipe.workspace)
    line = [sys.executable, "-m", "tests.pipelines.tune.making_inputs", str(path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: bool(shards(frames_pool(workspace, recipe))), alive=lambda: process.poll() is None)
            process.terminate()
            # What the work holds is released once, whatever comes while it is.
            process.terminate()
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, "interrupted" in said) == (130, True), said
    graph = make_graph(recipe)
    states = {step.stage.name: step.state for step in graph.plan(until_stage="frames")}
    assert states == {"manifest": "done", "frames": "partial"}
    claims = [claim for lock in workspace.folders(FOLDER) for claim in workspace.files(f"{FOLDER}/{lock}")]
    assert not claims, "they were not released"
    client = MlflowClient(tracking_uri(workspace))
    (experiment,) = (found for found in client.search_experiments() if found.name == "hbi")
    recorded = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert recorded == {"pipeline": "KILLED", "manifest": "FINISHED", "frames": "KILLED"}
