"""A run on an object store whose driver is killed once in every stage, beside one that is left alone on a disk."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_pool
from pipelines.data.labels_stage import labels_pool
from pipelines.graph import make_graph
from pipelines.shards import ShardPool
from pipelines.stages import Artifact, Step
from pipelines.storage import Storage
from pipelines.train.checkpoints import WEIGHTS
from pipelines.train.layout import HISTORY, MODEL
from tests.faults.flaky_s3 import FlakyS3, Request, flaky_s3
from tests.jobs.contents import frame_rows, label_rows
from tests.jobs.killing import has_checkpoint, kill_when, workers_at
from tests.jobs.recipes import command, read, run_command, write_recipe

pytestmark = [pytest.mark.slow_fault, pytest.mark.timeout(1500)]

VIDEOS, SHARD, EVERY = 96, 4, 3
KILLED = ("frames", "labels", "estimator", "retrieval", "evaluation", "video_qa", "qa_evaluation")
TRAININGS = ("estimator", "retrieval", "video_qa")
WORKERS = 2
"""Of a training, and tasks that decode at once."""


@dataclass
class Runs:
    """What the two recipes made, and how often the one was stopped."""

    killed: Recipe
    alone: Recipe
    store: FlakyS3
    plans: dict[str, dict[str, Step]] = field(default_factory=dict)
    """The plan after the driver was killed in a stage."""
    reached: dict[str, int] = field(default_factory=dict)
    """Videos that were done, or steps that were told of, at that moment."""

    def artifact(self, recipe: Recipe, stage: str) -> Artifact:
        found = make_graph(recipe).artifact(stage)
        assert found is not None
        return found

    def requests(self, method: str, part: str, suffix: str) -> Counter[str]:
        """How often the store was asked for what has ``part`` in its path and ends in ``suffix``."""
        paths = (item.path.partition("?")[0] for item in self.store.requests if item.method == method)
        return Counter(path for path in paths if part in path and path.endswith(suffix))


@pytest.fixture(scope="module")
def runs(moto_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("killed")
    path = write_recipe(folder, **recipe_sections())
    with flaky_s3(moto_address) as store, pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # A workspace in an object store holds no database.
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }.items():
            environment.setenv(name, value)
        options = ("--workspace", "s3://bucket/killed")
        result = Runs(read(path, *options), read(path), store)
        for stage in KILLED:
            kill_in(stage, result, command(path, *options))
        finish(command(path, *options))
        finish(command(path))
        yield result


def recipe_sections() -> dict[str, object]:
    """Small models and shards, and checkpoints within the epochs."""
    optimizer = {"lr": 1e-3, "clip_lr_factor": 1.0}
    often = {"every_steps": EVERY}
    training = {"batch_size": 8, "augmentation": {"operations": 1}, "optimizer": optimizer, "checkpoint": often}
    return {
        "tasks": ["retrieval", "video_qa"],
        "data": {
            "validation_videos": 12,
            "shapes": {
                "train_videos": VIDEOS - 12,
                "test_videos": 12,
                "captions_per_video": 1,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
        },
        "labels": {"videos_per_shard": 3, "batch_size": 3},
        "estimator": {"epochs": 6, "batch_size": 8, "optimizer": {"lr": 1e-3}, "checkpoint": often},
        "retrieval": {**training, "epochs": 3},
        "video_qa": {
            **training,
            "epochs": 2,
            "max_words": 16,
            "merging": {"text_rates": [0.5, 0.5], "video_rates": [0.5, 0.5], "heads": 4},
            "head": {"projection": 16, "hidden": 16},
        },
        "resources": {
            "local_cpus": 4,
            "local_object_store_gb": 0.15,
            "decode": {"max_tasks": WORKERS},
            "labels": {"max_actors": 1},
            "evaluation": {"max_actors": 1},
            "qa_evaluation": {"max_actors": 1},
            **{stage: {"workers": WORKERS} for stage in TRAININGS},
        },
        "tracking": {"every_steps": 1, "log_model": False},
    }


def kill_in(stage: str, runs: Runs, line: list[str]) -> None:
    """Starts the run and kills its driver when ``stage`` has done a part of its work, which the store makes last."""
    runs.store.delay(10**9, 0.2, strikes=work_of(stage))
    kill_when(line, is_in_the_middle(stage, runs.killed), timeout_s=300)
    runs.store.heal()
    runs.plans[stage] = {step.stage.name: step for step in make_graph(runs.killed).plan()}
    if stage in TRAININGS:
        runs.reached[stage] = last_step(make_graph(runs.killed).output(stage))
    elif stage in ("frames", "labels"):
        pool = pools(runs.killed)[stage]
        runs.reached[stage] = len(set(pool.index().column("key").to_pylist()))


def work_of(stage: str) -> Callable[[Request], bool]:
    """The requests that the work of a stage waits for."""
    method, part = {"frames": ("GET", ".mp4"), "estimator": ("PUT", "/estimator/")}.get(
        stage, ("GET", "/shards/frames-")
    )
    return lambda request: request.method == method and part in request.path


def is_in_the_middle(stage: str, recipe: Recipe) -> Callable[[], bool]:
    """Whether two shards, or a checkpoint and a point of the curve, are there, or an actor encodes."""
    if stage in ("frames", "labels"):
        return lambda: len(pools(recipe)[stage].storage.files()) >= 2
    if stage in TRAININGS:
        output = make_graph(recipe).output(stage)
        return lambda: has_checkpoint(output)
    return lambda: bool(workers_at("ScorerActor.videos") or workers_at("AnswererActor.answer"))


def last_step(output: Storage) -> int:
    return max(json.loads(line)["step"] for line in output.read_bytes(HISTORY).splitlines())


def pools(recipe: Recipe) -> Mapping[str, ShardPool]:
    workspace = Storage(recipe.workspace)
    return {"frames": frames_pool(workspace, recipe), "labels": labels_pool(workspace, recipe)}


def finish(line: list[str]) -> subprocess.CompletedProcess[str]:
    done = run_command(line, timeout_s=400)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


def test_x(runs: Runs) -> None:
    for stage, plan in runs.plans.items():
        print(stage, {k: (v.state, v.reason) for k, v in plan.items()}, runs.reached.get(stage))
    print(sum(runs.requests("GET", "", ".mp4").values()), len(runs.requests("GET", "", ".mp4")))
    print(runs.requests("PUT", "/shards/labels", ".parquet").most_common(3))
    for t in TRAININGS:
        print(
            t,
            sum(runs.requests("PUT", f"/{t}/", "position.json").values()),
            runs.artifact(runs.killed, t).counts["steps"],
        )
        a, b = (
            load_file(runs.artifact(r, t).storage.folder(MODEL).download("", Path(f"/tmp/hbi-dl-{t}")) / WEIGHTS)
            for r in (runs.killed, runs.alone)
        )
        print(max((a[n] - b[n]).abs().max() for n in a))
    for s in ("evaluation", "qa_evaluation"):
        print(
            runs.artifact(runs.killed, s).storage.read_json("metrics.json")
            == runs.artifact(runs.alone, s).storage.read_json("metrics.json")
        )
    print(frame_rows(runs.killed) == frame_rows(runs.alone), label_rows(runs.killed) == label_rows(runs.alone))
