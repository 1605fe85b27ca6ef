"""The whole pipeline on an S3 server: videos, workspace and MLflow's artifacts; nothing stays on the nodes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from pipelines.workspace.storage import Storage
from tests.cluster.conftest import Result
from tests.cluster.ray_nodes import ROOT, ray_cluster
from tests.mlflow_server import mlflow_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


KEY = "a key for the environment and nothing else"


def documents(workspace: Storage) -> Iterator[bytes]:
    """Everything in the workspace that is no table and no weights."""
    root = workspace.path()
    for info in workspace.filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        if info.path.endswith((".json", ".jsonl", ".csv")):
            yield workspace.read_bytes(info.path.removeprefix(f"{root}/"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the store was asked for, such as ``GET /bucket/key``."""
    from werkzeug.serving import WSGIRequestHandler

    made: list[str] = []

    def log(self: Any, *_: Any) -> None:
        made.append(self.requestline.rpartition(" ")[0].partition("?")[0])

    monkeypatch.setattr(WSGIRequestHandler, "log", log)
    return made


def test_the_pipeline_runs_on_an_object_store(
    requests: list[str],
    s3_bucket: str,
    recipe: Path,
    one_machine: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    workspace = f"{s3_bucket}/run"
    with mlflow_server(tmp_path, f"{s3_bucket}/mlflow") as server:
        tracking = server.uri
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        with ray_cluster(num_cpus=4, environment={**environment, "MLFLOW_TRACKING_URI": tracking}) as cluster:
            line = ["python", "-m", "jobs.run", "--config", str(recipe), "--workspace", workspace]
            scratch = cluster.folder / "scratch"
            rays_own = {*scratch.iterdir(), scratch / "_ray_lockfiles"}
            done = cluster.ray("job", "submit", "--working-dir", str(ROOT), "--", *line, timeout_s=1200)
            assert done.returncode == 0, done.stdout + done.stderr
            left = [path for path in cluster.folder.rglob("*") if path.suffix in (".mp4", ".parquet", ".safetensors")]
            assert not left, "videos, frames and checkpoints pass through the nodes and leave nothing there"
            assert rays_own.issuperset(scratch.iterdir())

        result = Result.of(recipe, workspace)
        assert result.labels == one_machine.labels
        assert result.metrics == one_machine.metrics

        # A video has two captions, and is read once.
        videos = Counter(
            match[1]
            for request in requests
            if (match := re.fullmatch(r"GET /bucket/run/shapes/\w+/videos/(\S+)", request))
        )
        assert len(videos) == 84
        assert set(videos.values()) == {1}

        client = MlflowClient(tracking)
        (experiment,) = client.search_experiments(filter_string="name = 'hbi'")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        assert runs["evaluation"].data.metrics["text_to_video/mean_rank"] == pytest.approx(
            result.metrics["text_to_video"]["mean_rank"]["value"]
        )
        downloaded = client.download_artifacts(runs["evaluation"].info.run_id, "metrics.json", str(tmp_path))
        assert Path(downloaded).stat().st_size > 0
    assert Storage(f"{s3_bucket}/mlflow").folders(), "the server keeps artifacts in the bucket"
    # Keys are for the environment alone.
    assert KEY not in done.stdout + done.stderr
    assert not any(KEY.encode() in document for document in documents(Storage(workspace)))
