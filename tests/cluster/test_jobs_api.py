"""A started cluster takes jobs from Ray's own client: upload, logs, status, stop, resume, exit codes."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines.graph import make_graph
from tests.cluster.conftest import Result
from tests.cluster.ray_nodes import ROOT, RayCluster, wait_for
from tests.jobs.killing import has_checkpoint
from tests.jobs.recipes import read

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

UPLOADED = ("benchmarks", "cluster", "hbi_models", "jobs", "pipelines")
RUNTIME_ENV = "cluster/runtime_env.yaml"

LOOK = """
import json, os, ray, jobs.run, pipelines
here = os.getcwd()
files = [os.path.relpath(os.path.join(folder, name), here) for folder, _, names in os.walk(here) for name in names]
ray.init(log_to_driver=False)
worker = ray.get(ray.remote(lambda: __import__("pipelines.datasets.manifest", fromlist=["manifest"]).__file__).remote())
print("FOUND " + json.dumps({"cwd": here, "files": files, "driver": pipelines.__file__, "worker": worker}))
"""


def submit(cluster: RayCluster, *command: str, working_dir: Path = ROOT) -> Any:
    """What a user types; follows the logs to the end."""
    options = ["--working-dir", str(working_dir), "--runtime-env", str(ROOT / RUNTIME_ENV)]
    return cluster.ray("job", "submit", *options, "--", *command, timeout_s=900)


def test_a_job_gets_the_code_and_the_recipes_and_nothing_else(cluster: RayCluster, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in UPLOADED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "mine.yaml").write_text("seed: 1\n")
    for name in ("videos/a.mp4", "workspace/frames/x.parquet", ".git/config", ".env", "mlruns/0/meta", "data/a.csv"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("not for the cluster")
    done = submit(cluster, "python", "-c", LOOK, working_dir=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    files = {Path(name) for name in found["files"] if "__pycache__" not in name}
    expected = {file.relative_to(copy) for name in UPLOADED for file in (copy / name).rglob("*") if file.is_file()}
    assert files == {*expected, Path("mine.yaml")}
    # The uploaded code is what runs, on the driver and on the workers, whatever the nodes have installed.
    assert Path(found["driver"]).is_relative_to(found["cwd"])
    assert Path(found["worker"]).is_relative_to(found["cwd"])


def test_a_job_that_fails_says_why_and_exits_with_one(cluster: RayCluster, tmp_path: Path, recipe: Path) -> None:
    line = ["python", "-m", "jobs.run", "--config", str(recipe), "--data.shapes", "null"]
    line += ["--data.annotations", "/nowhere", "--data.videos", "/nowhere", "--workspace", str(tmp_path / "workspace")]
    done = submit(cluster, *line)
    assert done.returncode == 1
    assert "/nowhere" in done.stdout and "Traceback" not in done.stdout
    job = cluster.latest_job()
    assert (job.status, job.driver_exit_code) == ("FAILED", 2)


def test_a_workspace_in_the_folder_of_the_job_is_refused(cluster: RayCluster, recipe: Path) -> None:
    done = submit(cluster, "python", "-m", "jobs.run", "--config", str(recipe), "--workspace", "workspace/mine")
    assert done.returncode == 1
    assert "Ray removes that after the job; give a URI" in done.stdout


def test_a_stopped_job_goes_on_where_it_was(
    cluster: RayCluster, recipe: Path, one_machine: Result, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    training = make_graph(read(recipe, "--workspace", str(workspace))).output("retrieval")
    line = ["python", "-m", "jobs.run", "--config", str(recipe), "--workspace", str(workspace)]
    client = cluster.client()
    job = client.submit_job(
        entrypoint=" ".join(line),
        runtime_env={**yaml.safe_load((ROOT / RUNTIME_ENV).read_text()), "working_dir": str(ROOT)},
    )

    def is_in_training() -> bool:
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        return has_checkpoint(training)

    wait_for(is_in_training, "a checkpoint", timeout_s=600)
    assert client.stop_job(job)
    wait_for(lambda: client.get_job_status(job).is_terminal(), "the end of the job", timeout_s=90)
    assert client.get_job_status(job) == "STOPPED"
    assert "interrupted; the same command goes on from here" in client.get_job_logs(job)
    assert statuses(workspace)["pipeline"] == statuses(workspace)["retrieval"] == "KILLED"
    assert not list(workspace.glob("locks/*/*.json")), "another run need not wait for what this one held"

    done = submit(cluster, *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "retrieval: partial (stopped at step" in done.stdout
    assert "Nothing to do" not in done.stdout
    result = Result.of(recipe, str(workspace))
    assert result.labels == one_machine.labels
    assert result.metrics == one_machine.metrics
    assert result.weights.keys() == one_machine.weights.keys()
    # One worker both times: the same sums in the same order.
    assert all(torch.equal(value, one_machine.weights[name]) for name, value in result.weights.items())
    assert set(statuses(workspace).values()) == {"FINISHED", "KILLED"}

    again = submit(cluster, *line)
    assert again.returncode == 0
    assert "Nothing to do: every stage is finished." in again.stdout


def statuses(workspace: Path) -> dict[str, str]:
    """The status of each MLflow run; of several with the same name, the first."""
    with sqlite3.connect(workspace / "mlflow.db") as database:
        rows = database.execute("select name, status from runs order by start_time desc").fetchall()
    return dict(rows)
