"""The report as the last stage of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.graph import make_graph
from pipelines.stages.report import PAGE
from tests.jobs.recipes import actions, read, run, write_recipe

pytestmark = pytest.mark.slow


def test_a_run_ends_with_a_page_that_mlflow_holds(tmp_path: Path) -> None:
    shapes = {
        "train_videos": 10,
        "test_videos": 6,
        "captions_per_video": 1,
        "image_size_px": 32,
        "duration_s": 2.0,
    }
    path = write_recipe(
        tmp_path,
        data={"validation_videos": 0, "shapes": shapes},
        report={"queries": 2, "figures": 1},
        tracking={"log_model": False},
    )
    recipe = read(path, "--model.game.teacher", "exact")
    outcomes = run(recipe)
    report = outcomes["report"].artifact
    page = report.storage.read_bytes(PAGE).decode()
    assert all(outcome.artifact.fingerprint in page for name, outcome in outcomes.items() if name != "report")
    assert report.counts["bytes"] == len(page.encode())

    client = MlflowClient(tracking_uri=f"sqlite:///{recipe.workspace}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == recipe.tracking.experiment]
    (logged,) = client.search_runs([experiment.experiment_id], filter_string="tags.stage = 'report'")
    assert Path(client.download_artifacts(logged.info.run_id, PAGE)).read_text() == page

    assert set(actions(run(recipe)).values()) == {"skipped"}
    steps = make_graph(replace(recipe, report=replace(recipe.report, queries=1))).plan()
    assert [step.stage.name for step in steps if step.state != "done"] == ["report"]
