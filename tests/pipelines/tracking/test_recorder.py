"""What MLflow's runs hold after they were updated more than once."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.recipe.tracking import TrackingConfig
from pipelines.tracking.address import tracking_uri
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.tracking.recorder import MlflowRecorder
from pipelines.tracking.run_state import RunState
from pipelines.workspace.storage import Storage
from tests.mlflow_database import copy_database
from tests.mlflow_server import mlflow_server


@pytest.mark.slow
def test_the_result_of_a_tuning_that_ranked_more_is_the_new_one(tmp_path: Path) -> None:
    workspace = Storage(str(tmp_path))
    copy_database(tmp_path)

    def finish(mean: float) -> RunState:
        tracker = PipelineTracker(workspace, TrackingConfig(), {}, identity={"tuning": "0123"})
        tracker.run.log_metrics({"final/mean": mean}, 16)
        tracker.finish("FINISHED")
        return tracker.run.state

    def recorded() -> tuple[float, list[float]]:
        """What MLflow shows, and all points, the earliest first."""
        client = MlflowClient(tracking_uri(workspace))
        (experiment,) = (found for found in client.search_experiments() if found.name == "hbi")
        (run,) = client.search_runs([experiment.experiment_id])
        points = client.get_metric_history(run.info.run_id, "final/mean")
        return run.data.metrics["final/mean"], [point.value for point in sorted(points, key=lambda p: p.timestamp)]

    first = finish(12.0)
    finish(12.0)
    assert recorded() == (12.0, [12.0])
    finish(11.0)
    assert recorded() == (11.0, [12.0, 11.0])
    # As from its note, if the server had been away.
    MlflowRecorder(tracking_uri(workspace), workspace).record(first, None)
    assert recorded() == (11.0, [12.0, 11.0])


@pytest.mark.long
def test_a_workspace_of_databricks_is_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own server answers in its place, which has the same interface but for artifacts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    monkeypatch.setenv("DATABRICKS_TOKEN", "token")
    config = TrackingConfig(experiment="/Users/me/hbi")
    with mlflow_server(tmp_path, str(tmp_path / "artifacts")) as server:
        monkeypatch.setenv("DATABRICKS_HOST", server.uri)
        tracker = PipelineTracker(Storage(str(tmp_path / "workspace")), config, {"seed": 1})
        tracker.run.log_metrics({"recall": 12.5})
        tracker.finish("FINISHED")
        client = MlflowClient(server.uri)
        (run,) = client.search_runs([client.get_experiment_by_name(config.experiment).experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"recall": 12.5})
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "the server chooses the place"
