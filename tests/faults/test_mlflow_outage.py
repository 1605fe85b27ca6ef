"""An MLflow server that is down when a run starts, dies or hangs on the way, and comes back: nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hbi_models.retrieval import RetrievalModel
from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.models.weights import save_model
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.tracking import TrackingConfig
from pipelines.run import run_plan
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracking.mlflow_runs import PipelineTracker, record_missed
from pipelines.tracking.recorder import MlflowRecorder
from pipelines.tracking.recording import Recording
from pipelines.tracking.run_state import RunState
from pipelines.train.files import HISTORY
from pipelines.train.history import History
from pipelines.tune.tracking import TuningTracker
from pipelines.workspace.errors import StorageError
from pipelines.workspace.runs import UNRECORDED
from pipelines.workspace.storage import Storage
from tests.cluster.ray_nodes import free_ports, wait_for
from tests.faults.test_whole_runs import recipe_file, succeeded
from tests.jobs.killing import wait_until, workers_at
from tests.jobs.recipes import command, read, run_command
from tests.mlflow_server import MlflowServer, mlflow_server
from tests.pipelines.conftest import s3_bucket
from tests.pipelines.tune.tunings import record_of, tuning_of
from tests.tiny_retrieval import retrieval_config

__all__ = ["s3_bucket"]

pytestmark = pytest.mark.fault

SAYS = "The run goes on"
"""In the warning about a server that is away."""


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, str(folder / "artifacts")) as server:
        yield server


@pytest.fixture
def server(stoppable: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """A server that runs, and is where runs are recorded."""
    stoppable.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stoppable.uri)
    # What waits for seconds in a run waits for fractions in a test.
    monkeypatch.setattr("pipelines.tracking.recording._FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr("pipelines.tracking.recording._LONGEST_PAUSE_S", 1.0)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return stoppable


def runs(server: MlflowServer, experiment: str) -> dict[str, Run]:
    """MLflow's runs of an experiment by name, each of which is there once."""
    client = MlflowClient(server.uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), "a run was made twice"
    return named


def curve(server: MlflowServer, run: Run, name: str) -> list[tuple[int, float]]:
    """Every point that the server holds, in the order of its steps."""
    points = MlflowClient(server.uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def artifacts(server: MlflowServer, run: Run) -> set[str]:
    return {item.path for item in MlflowClient(server.uri).list_artifacts(run.info.run_id)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user is warned of, also by the library that tries again."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(("pipelines", "urllib3"))
    ]


def is_empty(workspace: Storage) -> bool:
    return not workspace.folders(UNRECORDED)


def losses(*steps: int) -> list[tuple[int, Mapping[str, float]]]:
    return [(step, {"train/loss": 1 / step, "epoch": step / 10}) for step in steps]


@pytest.mark.slow_fault
def test_a_server_that_is_down_at_the_start_and_dies_on_the_way_misses_nothing(
    server: MlflowServer, tmp_path: Path, ray_local: Any, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, experiment = Storage(str(tmp_path / "workspace")), "down and dead"

    def report(context: StageContext, *steps: int) -> None:
        """As a training does: what it tells is in its history first."""
        History(context.output).extend(losses(*steps))
        context.tracker.log_batch(losses(*steps))

    def document(context: StageContext) -> None:
        name = f"{context.output.uri.split('/')[-2]}.json"
        context.output.write_json(name, {"a": [1, 2]})
        context.tracker.log_files(context.output, [name])

    def first(context: StageContext) -> Mapping[str, float]:
        report(context, *range(1, 1001))
        document(context)
        server.start()
        # It is told what it has missed while the stage is still at work.
        wait_for(lambda: is_empty(workspace), "what it missed to be recorded", timeout_s=120)
        report(context, *range(1001, 1101))
        return {"rows": 1}

    def second(context: StageContext) -> Mapping[str, float]:
        report(context, 1, 2, 3)
        server.kill()
        report(context, 4, 5)
        folder = Path(context.output.path(MODEL))
        folder.mkdir(parents=True)
        config = retrieval_config(tmp_path)
        save_model(folder, RetrievalModel(config), kind="retrieval", config=config)
        context.tracker.log_model(context.output.folder(MODEL))
        # A worker that is started again does a step again.
        report(context, 5, 6)
        document(context)
        return {"rows": 2, "recall": 12.5}

    graph = Graph(
        workspace,
        [
            Stage(name="first", version=1, settings={"text": "x" * 1000}, inputs=(), run=first),
            Stage(name="second", version=1, settings={}, inputs=("first",), run=second),
        ],
    )
    recipe = Recipe(workspace=workspace.uri, tracking=TrackingConfig(experiment=experiment))
    server.kill()
    with caplog.at_level(logging.INFO, logger="pipelines"):
        run_plan(graph, graph.plan(), recipe)
        said = warnings(caplog)
        assert len(said) == 2, "\n".join(said)
        for line in said:
            assert server.uri in line and SAYS in line and f"{workspace.uri}/{UNRECORDED}/" in line
        assert sum("is back and has" in message for message in caplog.messages) == 1
        assert workspace.folders(UNRECORDED), "a note says what the dead server misses"
        caplog.clear()

        server.start()
        outcomes = run_plan(graph, graph.plan(), recipe)
        assert [outcome.action for outcome in outcomes] == ["skipped", "skipped"]
        assert sum("all that it missed of 2 earlier runs" in message for message in caplog.messages) == 1
        assert not warnings(caplog)
    assert is_empty(workspace)

    recorded = runs(server, experiment)
    assert {name: run.info.status for name, run in recorded.items()} == dict.fromkeys(
        ("pipeline", "first", "second"), "FINISHED"
    )
    parent = recorded["pipeline"]
    for name in ("first", "second"):
        run = recorded[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["fingerprint"] == graph.fingerprints[name] == parent.data.tags[f"fingerprint.{name}"]
        assert parent.info.start_time <= run.info.start_time <= run.info.end_time <= parent.info.end_time
        assert artifacts(server, run) >= {"artifact.json", f"{name}.json"}
    assert parent.data.params["tracking.experiment"] == experiment
    assert recorded["first"].data.params["text"] == "x" * 500
    assert parent.data.metrics == {"second/rows": 2, "second/recall": 12.5}
    assert recorded["second"].data.metrics["count/recall"] == 12.5
    for name, steps in {"first": 1100, "second": 6}.items():
        for metric in ("train/loss", "epoch"):
            expected = [(step, metrics[metric]) for step, metrics in losses(*range(1, steps + 1))]
            assert curve(server, recorded[name], metric) == expected
    client = MlflowClient(server.uri)
    (model,) = client.search_logged_models([parent.info.experiment_id])
    assert (model.source_run_id, model.status) == (recorded["second"].info.run_id, "READY")


DRIVER = """
import sys, time
from pipelines.recipe.tracking import TrackingConfig
from pipelines.workspace.storage import Storage
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.train.history import History
workspace = Storage(sys.argv[1])
output = workspace.folder("training", "0" * 16)
history = History(output)
tracker = PipelineTracker(workspace, TrackingConfig(experiment=sys.argv[2]), {"seed": 42}, name="killed")
stage = tracker.stage("training", "0" * 16, {"rate": 0.1}, output)
for step in range(1, 201):
    history.extend([(step, {"train/loss": 1 / step})])
    stage.log_batch([(step, {"train/loss": 1 / step})])
    if step == 100:
        print("hang", flush=True)
        sys.stdin.readline()
print("done", flush=True)
time.sleep(600)
"""


@pytest.mark.slow_fault
def test_what_a_hanging_server_missed_of_a_killed_driver_is_recorded_by_the_next_run_on_a_bucket(
    server: MlflowServer, s3_bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, experiment = Storage(f"{s3_bucket}/outage"), "killed"
    line = [sys.executable, "-c", DRIVER, workspace.uri, experiment]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        assert driver.stdout.readline() == "hang\n"
        server.hang()
        driver.stdin.write("\n")
        driver.stdin.flush()
        try:
            assert driver.stdout.readline() == "done\n", "100 calls to a server that hangs take no longer than one"
        finally:
            driver.send_signal(signal.SIGKILL)
            server.go_on()
    (folder,) = workspace.folders(UNRECORDED)
    assert len(workspace.files(f"{UNRECORDED}/{folder}")) == 2, "a note for each run"
    with caplog.at_level(logging.INFO, logger="pipelines"):
        record_missed(workspace)
    assert any("all that it missed of 2 earlier runs" in message for message in caplog.messages), caplog.messages
    assert is_empty(workspace)
    recorded = runs(server, experiment)
    assert {name: run.info.status for name, run in recorded.items()} == {"killed": "KILLED", "training": "KILLED"}
    assert curve(server, recorded["training"], "train/loss") == [(step, 1 / step) for step in range(1, 201)]
    assert recorded["training"].data.params == {"rate": "0.1"}


@pytest.mark.slow_fault
def test_a_run_that_is_recorded_again_is_what_it_was(server: MlflowServer, tmp_path: Path) -> None:
    workspace = Storage(str(tmp_path))
    model = retrieval_config(tmp_path)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", RetrievalModel(model), kind="retrieval", config=model)
    workspace.write_bytes("plot.png", b"picture")
    History(workspace.folder("training")).extend(losses(1, 2, 3))
    state = RunState(
        key="0" * 32,
        name="twice",
        experiment="twice",
        parent=None,
        params={"p": "1"},
        tags={"c": "d"},
        started_ms=10**12,
        folder="training",
        figures=((0, 10**12 + 50, {"count/rows": 5.0}),),
        documents={"a.json": {"a": 1}},
        files=("plot.png", "gone.png"),
        model="model",
        status="FINISHED",
        ended_ms=10**12 + 1000,
    )
    again = RunState(**json.loads(json.dumps(asdict(state))))
    for _ in range(2):
        recorder = MlflowRecorder(server.uri, workspace)
        recorder.record(replace(state, status="RUNNING", ended_ms=None, model=None), losses(2))
        for _ in range(2):
            recorder.record(again, None)
    (found,) = runs(server, "twice").values()
    assert curve(server, found, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert curve(server, found, "count/rows") == [(0, 5.0)]
    assert artifacts(server, found) >= {"a.json", "plot.png"}
    assert (found.info.status, found.info.start_time, found.info.end_time) == ("FINISHED", 10**12, 10**12 + 1000)
    assert len(MlflowClient(server.uri).search_logged_models([found.info.experiment_id])) == 1


@pytest.mark.slow_fault
def test_what_a_server_missed_of_a_run_at_work_is_left_to_that_run(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tracking.recording._FIRST_PAUSE_S", 1e6)
    workspace, tracking = Storage(str(tmp_path)), TrackingConfig(experiment="parallel")
    server.hang()
    at_work = PipelineTracker(workspace, tracking, {}, name="at work")
    at_work.run.log_metrics({"rows": 1})
    server.go_on()
    PipelineTracker(workspace, tracking, {}, name="beside").finish("FINISHED")
    record_missed(workspace)
    assert runs(server, "parallel").keys() == {"beside"}
    at_work.finish("FINISHED")
    assert is_empty(workspace)
    recorded = runs(server, "parallel")
    assert {name: run.info.status for name, run in recorded.items()} == dict.fromkeys(("at work", "beside"), "FINISHED")
    assert curve(server, recorded["at work"], "rows") == [(0, 1.0)]


@pytest.mark.slow_fault
def test_a_search_whose_server_is_down_tells_it_all_when_it_is_back(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    search = tuning_of(tmp_path, {"tracking.experiment": "search"}, trials=2)
    records = [record_of(number, {}, [1.0, 2.0]) for number in range(2)]
    output = search.graph.workspace.folder("retrieval", "0" * 16)
    History(output).extend(losses(1, 2, 3))
    search.storage.write_bytes("ranking.txt", b"first")
    server.hang()
    tracker = TuningTracker(search)
    assert tracker.unsettled(records) == records, "nobody knows what the server was told"
    for record in records:
        trial = tracker.trial(record, search.recipe, output)
        trial.catch_up()
        History(output).extend(losses(4))
        trial.finish(record, "place")
    tracker.log_best(2.0, 2)
    tracker.log_results(search.storage, ["ranking.txt"], {"final/mean": 2.0}, 2, {"trials.json": {"a": [1, 2]}}, {})
    server.go_on()
    tracker.finish("FINISHED")
    assert [SAYS in line for line in warnings(caplog)] == [True]
    assert is_empty(search.graph.workspace)

    # The tuning goes on: it finds its runs, and tells again nothing that it has told.
    again = TuningTracker(search)
    assert again.unsettled(records) == []
    for record in records:
        again.trial(record, search.recipe, output).finish(record, "place")
    again.finish("FINISHED")
    recorded = runs(server, "search")
    assert {name: run.info.status for name, run in recorded.items()} == dict.fromkeys(
        ("tuning retrieval", "trial-000", "trial-001"), "FINISHED"
    )
    for record in records:
        assert curve(server, recorded[record.name], "train/loss") == [(step, 1 / step) for step in range(1, 5)]
        assert curve(server, recorded[record.name], "value") == [(20, 2.0)]
        assert recorded[record.name].data.tags["checkpoint"] == "place"
    parent = recorded["tuning retrieval"]
    assert curve(server, parent, "best/value") == [(2, 2.0)]
    assert artifacts(server, parent) >= {"ranking.txt", "trials.json"}
    table = MlflowClient(server.uri).load_table(parent.info.experiment_id, "trials.json", [parent.info.run_id])
    assert list(table["a"]) == [1, 2]


@contextmanager
def suspended(pids: set[int]) -> Iterator[None]:
    """Processes that do nothing meanwhile."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of something that answers every request with ``status``."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            """Not among the output of the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


@pytest.mark.parametrize("uri", ["htp://127.0.0.1:5000", "401", "403", "404"])
def test_what_is_no_server_or_refuses_is_an_error_at_the_start(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(int(uri) if uri.isdigit() else 200) as address:
        place = address if uri.isdigit() else uri
        monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
        with pytest.raises(StorageError, match=f"cannot record the run in {place}: "):
            PipelineTracker(Storage(str(tmp_path)), TrackingConfig(), {})
    assert is_empty(Storage(str(tmp_path)))


def test_a_gateway_without_its_server_is_a_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(503) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        PipelineTracker(Storage(str(tmp_path)), TrackingConfig(), {}).finish("FINISHED")
    (line,) = warnings(caplog)
    assert f"{address}: it answers 503" in line and SAYS in line


def test_notes_that_are_damaged_or_for_another_server_stay_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Storage(str(tmp_path))
    (port,) = free_ports(1)
    state = RunState(key="r", name="r", experiment="e", parent=None, params={}, tags={}, started_ms=0)
    others = {
        "1-other": json.dumps({"server": "http://other", "run": asdict(state)}),
        "2-damaged": "{",
        "3-unknown": json.dumps({"server": "here", "run": {**asdict(state), "more": 1}}),
        "4-nothing": "[]",
    }
    for name, content in others.items():
        workspace.write_bytes(f"{UNRECORDED}/{name}/r.json", content.encode())
    workspace.write_bytes("undelivered/20250101-000000-ab/calls.jsonl", b"{}")

    class Reachable(MlflowRecorder):
        def require_answer(self) -> None:
            """Nothing is sent, so nobody needs to be there."""

    Recording(workspace, "here", Reachable(f"http://127.0.0.1:{port}", workspace)).close()
    former, *lines = warnings(caplog)
    assert f"{workspace.uri}/undelivered" in former and "remove the folder" in former
    assert len(lines) == 4
    for name, line in zip(others, lines, strict=True):
        assert f"{workspace.uri}/{UNRECORDED}/{name}" in line and "remove the folder" in line.lower()
    assert "http://other" in lines[0] and "set MLFLOW_TRACKING_URI" in lines[0]
    assert workspace.folders(UNRECORDED) == list(others)


@pytest.mark.slow_fault
@pytest.mark.timeout(1200)
def test_a_whole_run_whose_server_dies_while_it_trains_and_comes_back_tells_it_everything(
    server: MlflowServer, tmp_path: Path
) -> None:
    settings = {"epochs": 8, "batch_size": 8, "augmentation": {"operations": 1}}
    recipe = recipe_file(tmp_path, retrieval=settings)
    options = ["--tracking.experiment", "whole", "--tracking.log_model", "true"]
    succeeded(run_command(command(recipe, *options, "--until_stage", "frames"), timeout_s=600))
    training = make_graph(read(recipe)).output("retrieval")
    workspace = Storage(read(recipe).workspace)
    with subprocess.Popen(command(recipe, *options), stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: training.exists(HISTORY), alive=lambda: run.poll() is None)
        workers = workers_at("RayTrainWorker", below=run.pid)
        with suspended(workers):
            server.kill()
            told = len(History(training).points)
        wait_until(lambda: len(History(training).points) > told, alive=lambda: run.poll() is None)
        # However long the server takes to be back, the training ends after that.
        with suspended(workers):
            wait_until(lambda: not is_empty(workspace), alive=lambda: run.poll() is None)
            server.start()
            wait_until(lambda: is_empty(workspace), alive=lambda: run.poll() is None)
        _, said = run.communicate()
    assert run.returncode == 0, said[-3000:]
    lines = [line for line in said.splitlines() if server.uri in line]
    assert [SAYS in line for line in lines] == [True, False] and "is back and has" in lines[1]
    assert is_empty(workspace)
    found = MlflowClient(server.uri).search_runs(
        [MlflowClient(server.uri).get_experiment_by_name("whole").experiment_id]
    )
    assert {run.info.status for run in found} == {"FINISHED"}
    (trained,) = (run for run in found if run.info.run_name == "retrieval")
    points = History(training).points
    assert [step for step, metrics in points if "train/loss" in metrics] == list(range(1, points[-1][0] + 1))
    for name in ("train/loss", "epoch", "validation/score", "throughput/pairs_per_s"):
        expected = [(step, metrics[name]) for step, metrics in points if name in metrics]
        assert curve(server, trained, name) == expected
    models = MlflowClient(server.uri).search_logged_models([trained.info.experiment_id])
    assert [model.source_run_id for model in models] == [trained.info.run_id]
