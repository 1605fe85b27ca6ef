"""Nodes that are lost and nodes that join while a run is at work, on clusters of this machine."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.graph import make_graph
from pipelines.workspace.storage import Storage
from tests.cluster.ray_nodes import ROOT, RayCluster, ray_cluster
from tests.faults.finished_run import (
    CHECKPOINT_EVERY,
    FinishedRun,
    assert_same_weights,
    done_twice,
    kept_step,
    paces,
    pools,
)
from tests.faults.flaky_s3 import FlakyS3, Request
from tests.jobs.clips import ClipsFile
from tests.jobs.contents import frame_rows, frame_rows_made_here, shards
from tests.jobs.killing import has_checkpoint, wait_until, workers_at
from tests.jobs.recipes import RAY, command, read, write_recipe

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault, pytest.mark.timeout(1800)]

CPUS = 1
"""Of each node: no two tasks or workers fit on one."""
VIDEOS, SHARD = 160, 4

HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "1000",
}
"""Ray notices a dead node after seconds."""


@contextmanager
def two_nodes() -> Iterator[RayCluster]:
    """A head and another node."""
    with ray_cluster(num_cpus=CPUS, more_cpus=[CPUS], environment=HEALTH_CHECKS) as cluster:
        yield cluster


def workers_on(cluster: RayCluster, node: int, work: str) -> set[int]:
    """The processes of a node that are at something with ``work`` in its name."""
    return workers_at(work, below=cluster.nodes[node].pid)


@contextmanager
def running(cluster: RayCluster, recipe_file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command of a recipe on a cluster; killed where the test fails."""
    line = command(recipe_file, "--resources.ray_address", f"127.0.0.1:{cluster.gcs_port}", *options)
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    with (
        (cluster.folder / "driver.txt").open("w") as said,
        subprocess.Popen(line, env=environment, cwd=ROOT, stdout=said, stderr=said, text=True) as driver,
    ):
        try:
            yield driver
        finally:
            driver.kill()


def finish(cluster: RayCluster, driver: subprocess.Popen[str]) -> None:
    driver.wait(timeout=400)
    assert driver.returncode == 0, (cluster.folder / "driver.txt").read_text()[-3000:]


def is_clip(request: Request) -> bool:
    return request.method == "GET" and request.path.partition("?")[0].endswith(".mp4")


def test_frames_lose_no_video_when_a_node_goes_and_another_comes(s3: FlakyS3, bucket: Storage, tmp_path: Path) -> None:
    data = ClipsFile(tmp_path, bucket)
    data.add(VIDEOS)
    path = write_recipe(tmp_path, data=data.settings, resources=RAY)
    recipe = read(path)
    pool = pools(recipe)["frames"]
    # Every decoding waits for the store, until everything that is to happen has happened.
    s3.delay(1 << 30, 1.0, strikes=is_clip)
    with two_nodes() as cluster, running(cluster, path, "--until_stage", "frames") as driver:

        def is_alive() -> bool:
            return driver.poll() is None

        wait_until(lambda: all(workers_on(cluster, node, "MapBatches(") for node in (0, 1)), alive=is_alive)
        wait_until(lambda: len(shards(pool)) >= 4, alive=is_alive)
        wait_until(lambda: bool(workers_on(cluster, 1, "MapBatches(")), alive=is_alive)
        cluster.lose_node(1)
        before = shards(pool)
        cluster.add_node(num_cpus=CPUS)
        wait_until(lambda: bool(workers_on(cluster, 2, "MapBatches(")), alive=is_alive)
        assert len(shards(pool)) < VIDEOS // SHARD, "the new node came in the middle"
        s3.heal()
        finish(cluster, driver)
    after = shards(pool)
    assert len(after) == VIDEOS // SHARD
    # A worker may be lost between its commit and saying so.
    assert sum(after[name] != state for name, state in before.items()) <= 1
    decoded = Counter(request.path.partition("?")[0] for request in s3.requests if is_clip(request))
    assert len(decoded) == VIDEOS
    assert sum(decoded.values()) - VIDEOS <= SHARD, "only the shard in the hands of the lost node is decoded twice"
    rows = frame_rows(recipe)
    assert len(rows) == VIDEOS
    assert rows == frame_rows_made_here(recipe)


def test_a_training_that_loses_a_node_goes_on_when_another_comes(full_run: FinishedRun, tmp_path: Path) -> None:
    recipe = full_run.until_before("retrieval", tmp_path)
    output = make_graph(recipe).output("retrieval")
    options = ("--workspace", recipe.workspace, "--until_stage", "retrieval")
    with two_nodes() as cluster, running(cluster, full_run.recipe_file, *options) as driver:

        def is_alive() -> bool:
            return driver.poll() is None

        wait_until(
            lambda: has_checkpoint(output) and len(paces(recipe, "retrieval")) > CHECKPOINT_EVERY,
            alive=is_alive,
            timeout_s=400,
        )
        for node in (0, 1):
            assert workers_on(cluster, node, "RayTrainWorker"), "both nodes are at work"
        cluster.lose_node(1)
        before, kept = paces(recipe, "retrieval"), kept_step(recipe, "retrieval")
        cluster.add_node(num_cpus=CPUS)
        wait_until(lambda: bool(workers_on(cluster, 2, "RayTrainWorker")), alive=is_alive, timeout_s=400)
        finish(cluster, driver)
    artifact = make_graph(recipe).artifact("retrieval")
    assert artifact is not None
    assert max(before) < artifact.counts["steps"], "the node was lost in the middle"
    again = done_twice(before, paces(recipe, "retrieval"))
    assert all(step > kept for step in again)
    assert len(again) <= CHECKPOINT_EVERY
    assert_same_weights(recipe, full_run.recipe, "retrieval")
