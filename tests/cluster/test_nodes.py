"""Two and three nodes on one machine: all of them work, and the result is that of one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Result
from tests.cluster.ray_nodes import ROOT, RayCluster, ray_cluster
from tests.jobs.recipes import read

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

CPUS = 2
"""Of each node; an actor or worker takes all of them, so that no two fit on one node."""


def on_every_node(nodes: int) -> list[str]:
    """Options that give each node a share of every stage."""
    settings: dict[str, Any] = {}
    for stage in ("labels", "evaluation"):
        settings |= {f"{stage}.min_actors": nodes, f"{stage}.max_actors": nodes, f"{stage}.cpus_per_actor": CPUS}
    for stage in ("estimator", "retrieval"):
        settings |= {f"{stage}.workers": nodes, f"{stage}.cpus_per_worker": CPUS}
    return [word for name, value in settings.items() for word in (f"--resources.{name}", str(value))]


def run_job(cluster: RayCluster, recipe: Path, workspace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = ["python", "-m", "jobs.run", "--config", str(recipe), "--workspace", str(workspace), *options]
    return cluster.ray("job", "submit", "--working-dir", str(ROOT), "--", *line, timeout_s=1200)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one error in the log, which Ray prints again at the end."""
    (error,) = {line.partition(" ERROR ")[2] for line in done.stdout.splitlines() if " ERROR " in line}
    return error


def nodes_that_ran(cluster: RayCluster, name: str) -> dict[str, int]:
    """How many finished tasks, or calls of actors, with ``name`` in their name each node ran."""
    ran: dict[str, int] = {}
    for task in cluster.state("tasks", state="FINISHED"):
        if name in task["name"]:
            ran[task["node_id"]] = ran.get(task["node_id"], 0) + 1
    return ran


@pytest.mark.parametrize("nodes", [2, 3])
def test_all_nodes_work_and_the_result_is_that_of_one_machine(
    nodes: int, recipe: Path, one_machine: Result, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    with ray_cluster(num_cpus=CPUS, more_cpus=[CPUS] * (nodes - 1)) as cluster:
        done = run_job(cluster, recipe, workspace, *on_every_node(nodes))
        assert done.returncode == 0, done.stdout + done.stderr
        every = {node["node_id"] for node in cluster.alive_nodes()}
        assert len(every) == nodes
        for work in (
            "MapBatches(frames)",
            "RetrievalScorerActor.videos",
            "RetrievalScorerActor.tile",
        ):
            assert nodes_that_ran(cluster, work).keys() == every, f"{work}: {nodes_that_ran(cluster, work)}"
        # How many shards each one gets depends on how fast it starts beside the others: the first may have done all of
        # them before another one has a node.
        labelling = [
            actor["node_id"] for actor in cluster.state("actors") if "MapBatches(labels)" in actor["class_name"]
        ]
        placed = [node for node in labelling if node is not None]
        assert len(labelling) == nodes
        assert len(placed) == len({*placed}) > 0
        assert every.issuperset(placed)
        # The estimator's workers, and those of the retrieval model.
        workers = [actor for actor in cluster.state("actors") if actor["class_name"] == "RayTrainWorker"]
        assert len(workers) == 2 * nodes
        assert {worker["node_id"] for worker in workers} == every
    result = Result.of(recipe, str(workspace))
    assert result.labels == one_machine.labels
    assert result.metrics == one_machine.metrics
    for name, value in one_machine.weights.items():
        # Sums in another order: see tests/distributed.
        assert (result.weights[name] - value).abs().max().item() < 1e-4, name


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayCluster, Path]]:
    """A head without CPUs, a node that has its own file system at a folder of the head's, and that folder."""
    folder = tmp_path_factory.mktemp("unshared")
    hide = hiding(folder)
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this account may not mount a file system, so all nodes here share all folders")
    with ray_cluster(num_cpus=0) as cluster:
        cluster.add_node(num_cpus=CPUS, before=hide)
        yield cluster, folder


def hiding(folder: Path) -> list[str]:
    """The beginning of a command that finds another, empty ``folder``."""
    mount = f'mount -t tmpfs none "{folder}" && exec "$@"'
    return ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "bash", "-c", mount, "bash"]


def test_a_workspace_that_a_node_does_not_see_is_refused_at_once(
    unshared: tuple[RayCluster, Path], recipe: Path
) -> None:
    cluster, folder = unshared
    done = run_job(cluster, recipe, folder / "workspace")
    assert done.returncode == 1
    line = error_of(done)
    node = next(node for node in cluster.alive_nodes() if not node["is_head_node"])
    assert f"{node['node_ip']} (node {node['node_id'][:8]}) does not see it" in line
    assert "workspace is" in line and "s3://" in line and "NFS" in line
    assert not (folder / "workspace" / "shapes").exists(), "no stage was started"
    assert not (folder / "workspace" / "mlflow.db").exists(), "and no run was recorded"
    # The driver ran on the head although the head has no CPUs.
    job = cluster.latest_job()
    (head,) = (node["node_id"] for node in cluster.alive_nodes() if node["is_head_node"])
    assert job.driver_node_id == head


def test_videos_that_a_node_does_not_see_are_refused_at_once(
    unshared: tuple[RayCluster, Path], recipe: Path, tmp_path: Path
) -> None:
    cluster, folder = unshared
    videos = folder / "videos"
    videos.mkdir()
    (videos / "one.mp4").write_bytes(b"a video")
    captions = tmp_path / "captions.csv"
    captions.write_text("path,caption,split\none.mp4,one,train\n")
    options = ["--data.shapes", "null", "--data.dataset", "captions_file", "--data.annotations", str(captions)]
    done = run_job(cluster, recipe, tmp_path / "workspace", *options, "--data.videos", str(videos))
    assert done.returncode == 1
    line = error_of(done)
    assert f"data.videos is {videos}" in line and "does not see it" in line


DRIVER = """
import sys
from jobs.settings import read_recipe, recipe_parser
from pipelines.graph import make_graph
from pipelines.resources.placement import PlacementError, check_new_nodes, checked_nodes
from pipelines.stages.places import places_of
from pipelines.resources.ray_session import ray_session

recipe, _ = read_recipe(recipe_parser("test"), sys.argv[1:])
graph = make_graph(recipe)
with ray_session(recipe.resources), checked_nodes(graph.workspace, places_of(graph, recipe)):
    check_new_nodes()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        check_new_nodes()
    except PlacementError as error:
        print(f"refused: {error}")
"""


def test_a_node_that_joins_later_is_asked_too(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    hide = hiding(folder)
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this account may not mount a file system, so all nodes here share all folders")
    with ray_cluster(num_cpus=CPUS) as cluster:
        settings = [
            "--workspace",
            str(folder / "workspace"),
            "--resources.ray_address",
            f"127.0.0.1:{cluster.gcs_port}",
        ]
        assert read(recipe, *settings).workspace == str(folder / "workspace")
        line = [sys.executable, "-c", DRIVER, "--config", str(recipe), *settings]
        environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as driver:
            assert driver.stdin is not None and driver.stdout is not None
            assert any(line == "ready\n" for line in driver.stdout), "the head alone is fine"
            cluster.add_node(num_cpus=CPUS, before=hide)
            out, _ = driver.communicate("\n", timeout=300)
    assert "refused: workspace is" in out and "does not see it" in out
