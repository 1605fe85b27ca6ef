"""Runs of small stages: what MLflow and the workspace hold when they end, and when they do not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import RetrievalConfig
from pipelines.recipe.data import DataConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources, ResourcesConfig, TaskResources, TrainResources
from pipelines.recipe.tracking import TrackingConfig
from pipelines.run import run_plan
from pipelines.stages.execution import execute_step
from pipelines.stages.manifest import manifest_stage
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.tracking.address import tracking_uri, ui_command
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.train.history import History
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage
from tests.mlflow_database import copy_database


def graph(workspace: Path, last: Callable[[StageContext], Mapping[str, float]]) -> Graph:
    def first(context: StageContext) -> Mapping[str, float]:
        points = [(step, {"loss": 1.0 / step}) for step in range(1, 2001)]
        History(context.output).extend(points)
        context.tracker.log_batch(points)
        context.output.write_json("notes.json", {"a": [1, 2]})
        context.tracker.log_files(context.output, ["notes.json"])
        return {"rows": 2, "errors": 0}

    return Graph(
        Storage(str(workspace)),
        [
            Stage(name="first", version=1, settings={"rate": {"low": 1, "high": None}}, inputs=(), run=first),
            Stage(name="last", version=1, settings={"text": "x" * 10_000}, inputs=("first",), run=last),
        ],
    )


def runs(workspace: Path) -> dict[str, Any]:
    """MLflow's runs by name; a stage that ran twice has its latest here."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name == "hbi")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_a_run_that_fails_is_recorded_as_failed_and_can_be_repeated(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    copy_database(workspace)
    recipe = Recipe(workspace=str(workspace))

    def fail(context: StageContext) -> Mapping[str, float]:
        raise RuntimeError("no more memory")

    broken = graph(workspace, fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        run_plan(broken, broken.plan(), recipe)
    recorded = runs(workspace)
    assert {name: run.info.status for name, run in recorded.items()} == {
        "pipeline": "FAILED",
        "first": "FINISHED",
        "last": "FAILED",
    }

    def interrupt(context: StageContext) -> Mapping[str, float]:
        raise KeyboardInterrupt

    broken = graph(workspace, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_plan(broken, broken.plan(), recipe)
    assert runs(workspace)["last"].info.status == runs(workspace)["pipeline"].info.status == "KILLED"

    mended = graph(workspace, lambda context: {"rows": 1, "errors": 0, "recall": 12.5})
    outcomes = run_plan(mended, mended.plan(), recipe)
    assert [outcome.action for outcome in outcomes] == ["skipped", "done"]
    recorded = runs(workspace)
    assert recorded["pipeline"].info.status == "FINISHED"
    assert recorded["pipeline"].data.metrics == {"last/rows": 1, "last/errors": 0, "last/recall": 12.5}
    assert recorded["last"].data.params["text"] == "x" * 500, "MLflow takes no longer ones"
    assert recorded["first"].data.params == {"rate.low": "1", "rate.high": "None"}
    assert recorded["first"].data.metrics["loss"] == 1 / 2000
    assert f"sqlite:///{workspace}/mlflow.db" in ui_command(Storage(str(workspace)))
    # The database belongs to the workspace, not to the process.
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_data_that_cannot_serve_the_recipe_stop_the_run_at_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("path,caption,split\na.mp4,x,train\nb.mp4,y,train\n")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    data = DataConfig(dataset="captions_file", annotations=str(tmp_path / "own.csv"), validation_videos=0)
    model = RetrievalConfig(clip=ClipConfig(pretrained=None))
    resources = ResourcesConfig(
        decode=TaskResources(max_tasks=0),
        retrieval=TrainResources(workers=0),
        evaluation=ActorResources(max_actors=0),
    )
    recipe = Recipe(workspace=str(tmp_path / "workspace"), data=data, model=model, resources=resources)
    copy_database(tmp_path / "workspace")

    def decode(context: StageContext) -> Mapping[str, float]:
        raise AssertionError("nothing may be decoded")

    later = [("frames", "manifest"), ("retrieval", "frames"), ("evaluation", "retrieval")]
    stages = [Stage(name=name, version=1, settings={}, inputs=(above,), run=decode) for name, above in later]
    unfit = Graph(Storage(recipe.workspace), [manifest_stage(data), *stages])
    with pytest.raises(ValueError, match=r"retrieval\.batch_size is 128, .* 2 videos(.|\n)*evaluation\.split is test"):
        run_plan(unfit, unfit.plan(), recipe)
    assert [step.state for step in unfit.plan()] == ["done", "missing", "missing", "missing"]
    assert runs(tmp_path / "workspace")["pipeline"].info.status == "FAILED"


def test_where_nothing_is_to_be_done_nothing_is_recorded(tmp_path: Path) -> None:
    finished = graph(tmp_path, lambda context: {"rows": 1})
    for step in finished.plan():
        execute_step(finished, step, tracker=StageTracker(), config={})
    outcomes = run_plan(finished, finished.plan(), Recipe(workspace=str(tmp_path)))
    assert [outcome.action for outcome in outcomes] == ["skipped", "skipped"]
    assert not (tmp_path / "mlflow.db").exists()


def test_runs_go_to_the_server_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: str
) -> None:
    storage = Storage(str(tmp_path / "workspace"))
    assert tracking_uri(storage) == f"sqlite:///{tmp_path}/workspace/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Storage(f"{s3_bucket}/workspace")) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(storage) == "http://127.0.0.1:5000"


@pytest.mark.parametrize("name", ["two words", "a#b", "a?b", "100%", "a%20b", "ä;ö"])
def test_the_address_of_a_database_names_its_path_whatever_that_holds(name: str, tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    with create_engine(tracking_uri(Storage(str(tmp_path / name)))).connect() as database:
        database.exec_driver_sql("CREATE TABLE t (x)")
    assert [path.relative_to(tmp_path) for path in tmp_path.glob("**/*.db")] == [Path(name, "mlflow.db")]


@pytest.mark.slow
def test_runs_and_artifacts_lie_in_the_workspace_whatever_its_path_holds(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    name = "a b?x=1&y=%23#z"
    workspace = Storage(str(tmp_path / name))
    workspace.write_json("stage/notes.json", {})
    tracker = PipelineTracker(workspace, TrackingConfig(), {"seed": 1})
    tracker.run.log_files(workspace.folder("stage"), ["notes.json"])
    tracker.finish("FINISHED")
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing lies beside the workspace"
    assert {path.name for path in (tmp_path / name).iterdir()} >= {"mlflow.db", "mlartifacts"}
    client = MlflowClient(tracking_uri(workspace))
    (experiment,) = (found for found in client.search_experiments() if found.name == "hbi")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "1"})
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["notes.json"]
    assert tracking_uri(workspace) in shlex.split(ui_command(workspace))


@pytest.mark.parametrize("given", ["./mlruns", "mlruns", "/data/mlruns", "file:///data/mlruns", "file:mlruns"])
def test_a_folder_is_no_place_to_record_runs_in(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    finished = graph(tmp_path / "workspace", lambda context: {"rows": 1})
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI is .*, a folder; MLflow needs a server or") as error:
        run_plan(finished, finished.plan(), Recipe(workspace=str(tmp_path / "workspace")))
    folder = "/data/mlruns" if "/data" in given else f"{tmp_path}/mlruns"
    assert repr(given) in str(error.value) and f"sqlite:///{folder}/mlflow.db," in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing was begun"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert tracking_uri(Storage(str(tmp_path))) == "databricks"


@pytest.mark.parametrize(("name", "escaped"), [("a?b", "a%3Fb"), ("a%20b", "a%2520b")])
def test_an_address_that_names_another_file_than_it_seems_to_is_refused_with_the_right_one(
    name: str, escaped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{name}/mlflow.db")
    workspace = Storage(str(tmp_path / "workspace"))
    with pytest.raises(ValueError, match="which names the file") as error:
        tracking_uri(workspace)
    right = str(error.value).rpartition("Set it to ")[2]
    assert escaped in right
    monkeypatch.setenv("MLFLOW_TRACKING_URI", right)
    assert tracking_uri(workspace) == right


@pytest.mark.slow
def test_a_deleted_experiment_is_named_with_what_to_do(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    workspace = Storage(str(tmp_path))
    copy_database(tmp_path)
    client = MlflowClient(tracking_uri(workspace))
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    with pytest.raises(StorageError, match="the experiment 'gone' was deleted there") as error:
        PipelineTracker(workspace, TrackingConfig(experiment="gone"), {})
    assert "--tracking.experiment" in str(error.value) and "\n" not in str(error.value)
    assert f"mlflow experiments restore --experiment-id {number}" in str(error.value)
    client.restore_experiment(number)
    PipelineTracker(workspace, TrackingConfig(experiment="gone"), {}).finish("FINISHED")
