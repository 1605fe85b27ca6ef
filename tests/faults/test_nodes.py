"""Nodes that go and come while a run is at work: two nodes on loopback, and a third one."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipelines.data.frames_stage import frames_pool
from pipelines.graph import make_graph
from pipelines.storage import Storage
from pipelines.train.checkpoints import load_model
from pipelines.train.layout import MODEL
from tests.faults.cluster import LoopbackCluster, loopback_cluster
from tests.faults.flaky_s3 import FlakyS3, Request, flaky_s3
from tests.jobs.clips import ClipsFile
from tests.jobs.contents import frame_rows, frame_rows_made_here, shards
from tests.jobs.killing import has_checkpoint, wait_until
from tests.jobs.recipes import command, read, run_command, write_recipe

pytestmark = pytest.mark.slow_fault

VIDEOS, SHARD = 120, 4


@dataclass(frozen=True)
class Site:
    """A cluster, a store that can be slow, and the environment to reach both."""

    cluster: LoopbackCluster
    store: FlakyS3
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def site(moto_address: str) -> Iterator[Site]:
    with flaky_s3(moto_address) as store:
        environment = {
            "AWS_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with loopback_cluster(1, 1) as cluster:
                yield Site(cluster, store, environment)


@contextmanager
def running(line: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A driver that is killed if the test fails."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def is_clip(request: Request) -> bool:
    return request.method == "GET" and request.path.partition("?")[0].endswith(".mp4")


def test_frames_are_complete_when_a_node_goes_and_another_comes(site: Site, tmp_path: Path) -> None:
    cluster, store = site.cluster, site.store
    data = ClipsFile(tmp_path, Storage("s3://bucket/nodes"))
    data.add(VIDEOS)
    path = write_recipe(tmp_path, data=data.settings)
    recipe = read(path, "--resources.ray_address", cluster.address)
    pool = frames_pool(Storage(recipe.workspace), recipe)
    # Decoding waits for the store, until everything that is to happen has happened.
    store.delay(10**9, 0.5, strikes=is_clip)
    line = command(path, "--until_stage", "frames", "--resources.ray_address", cluster.address)
    with running(line) as driver:

        def is_alive() -> bool:
            return driver.poll() is None

        head, second = cluster.nodes
        wait_until(lambda: bool(head.workers_at("MapBatches(") and second.workers_at("MapBatches(")), alive=is_alive)
        wait_until(lambda: len(shards(pool)) >= 4, alive=is_alive)
        before = shards(pool)
        assert second.workers_at("MapBatches("), "the node that goes is at work"
        cluster.remove_node(second)
        third = cluster.add_node(cpus=1)
        wait_until(lambda: bool(third.workers_at("MapBatches(")), alive=is_alive)
        committed = len(shards(pool))
        store.heal()
        _, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, errors[-3000:]
    assert len(before) <= committed < VIDEOS // SHARD
    after = shards(pool)
    assert {name: after[name] for name in before} == before
    assert len(after) == VIDEOS // SHARD
    rows = frame_rows(recipe)
    assert len(rows) == VIDEOS
    # A video is read once for being decoded: only those in the hands of the lost node were decoded twice.
    decoded = Counter(request.path.partition("?")[0] for request in store.requests if is_clip(request))
    assert len(decoded) == VIDEOS
    assert 0 <= sum(decoded.values()) - VIDEOS <= SHARD
    assert rows == frame_rows_made_here(recipe)


def test_a_training_that_loses_a_node_goes_on_when_another_comes(site: Site, tmp_path: Path) -> None:
    cluster = site.cluster
    data = ClipsFile(tmp_path)
    data.add(60)
    path = write_recipe(
        tmp_path,
        data={**data.settings, "validation_videos": 8},
        retrieval={
            "epochs": 12,
            "batch_size": 8,
            "augmentation": {"operations": 1},
            "optimizer": {"lr": 1e-3, "clip_lr_factor": 1.0},
            "checkpoint": {"every_steps": CHECKPOINT_EVERY},
        },
        tracking={"every_steps": 1, "log_model": False},
    )
    options = [
        "--model.game.teacher",
        "exact",
        "--resources.ray_address",
        cluster.address,
        "--until_stage",
        "retrieval",
    ]
    undisturbed = run_command(command(path, *options, "--workspace", str(tmp_path / "undisturbed")), timeout_s=300)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    recipe = read(path, *options[:4])
    graph = make_graph(recipe)
    output = graph.output("retrieval")
    with running(command(path, *options)) as driver:

        def is_alive() -> bool:
            return driver.poll() is None

        wait_until(lambda: has_checkpoint(output), alive=is_alive)
        head, second = cluster.nodes
        assert head.workers_at("RayTrainWorker")
        assert second.workers_at("RayTrainWorker"), "the node that goes is at work"
        cluster.remove_node(second)
        third = cluster.add_node(cpus=1)
        wait_until(lambda: bool(third.workers_at("RayTrainWorker")), alive=is_alive)
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors[-3000:]
    found, expected = weights(recipe), weights(replace(recipe, workspace=str(tmp_path / "undisturbed")))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


CHECKPOINT_EVERY = 3


def weights(recipe):
    artifact = make_graph(recipe).artifact("retrieval")
    assert artifact is not None
    return load_model(artifact.storage.folder(MODEL), Path()).state_dict()
