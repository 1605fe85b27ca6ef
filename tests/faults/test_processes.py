"""Processes that are killed, and other numbers of them: the frames and labels of a run do not depend on it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources, TaskResources
from pipelines.resources.ray_leftovers import keep_session_folder, make_session_folder, remove_dead_sessions
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.workspace.storage import Storage
from tests.jobs.clips import ClipsFile
from tests.jobs.contents import assert_labels_equal_up_to_rounding, frame_rows, label_rows, shards
from tests.jobs.killing import descendants, kill, wait_until, wait_until_gone, worker_at, workers_at
from tests.jobs.recipes import RAY, TASKS_AND_ACTORS, actions, read, run, write_recipe

pytestmark = pytest.mark.slow_fault

VIDEOS, SHARD = 80, 4


@dataclass(frozen=True)
class Undisturbed:
    """A run up to the labels that nothing happened to."""

    recipe: Recipe
    frames: dict[str, dict[str, Any]]
    labels: dict[tuple[str, int], dict[str, Any]]

    def elsewhere(self, folder: Path) -> Recipe:
        """The same recipe in a fresh workspace."""
        return replace(self.recipe, workspace=str(folder / "workspace"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_local: Any) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    data = ClipsFile(folder)
    data.add(VIDEOS, captions=2)
    path = write_recipe(
        folder,
        data={**data.settings, "validation_videos": 8},
        labels={"videos_per_shard": 3, "batch_size": 3},
        resources={**RAY, **TASKS_AND_ACTORS},
    )
    recipe = read(path)
    run(recipe, until_stage="labels")
    return Undisturbed(recipe, frame_rows(recipe), label_rows(recipe))


def test_a_fresh_workspace_with_one_worker_at_a_time_holds_the_same_rows(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    base = undisturbed.elsewhere(tmp_path)
    # The Ray of the tests has four CPUs for decoding, and one actor made the labels before.
    resources = replace(base.resources, decode=TaskResources(max_tasks=1), labels=ActorResources(max_actors=2))
    recipe = replace(base, resources=resources)
    run(recipe, until_stage="labels")
    assert frame_rows(recipe) == undisturbed.frames
    assert label_rows(recipe) == undisturbed.labels


def test_shards_of_another_size_hold_the_same_frames_and_the_same_labels_up_to_rounding(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    base = undisturbed.elsewhere(tmp_path)
    recipe = replace(
        base,
        frames=replace(base.frames, videos_per_shard=7),
        labels=replace(base.labels, videos_per_shard=5),
    )
    run(recipe, until_stage="labels")
    assert frame_rows(recipe) == undisturbed.frames
    assert_labels_equal_up_to_rounding(label_rows(recipe), undisturbed.labels, recipe)


def done_again(before: dict[str, str], after: dict[str, str]) -> int:
    """How many shards of ``before`` were written once more: a worker may die between its commit and saying so."""
    assert before.keys() <= after.keys()
    return sum(after[name] != state for name, state in before.items())


def test_a_decoding_worker_that_is_killed_costs_its_shard_alone(undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe = undisturbed.elsewhere(tmp_path)
    pool = frames_pool(Storage(recipe.workspace), recipe)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run, recipe, until_stage="frames")
        wait_until(lambda: len(shards(pool)) >= 2, alive=lambda: not running.done())
        before = shards(pool)
        at_work: dict[int, set[int]] = {}

        def is_decoding() -> bool:
            """A worker decodes in a process of its own, which it starts with its first video."""
            at_work.update({pid: below for pid in workers_at("MapBatches(") if (below := descendants(pid))})
            return bool(at_work)

        wait_until(is_decoding, alive=lambda: not running.done())
        victim, decoding = at_work.popitem()
        kill(victim)
        outcomes = running.result(timeout=200)
    assert not wait_until_gone({victim, *decoding}, timeout_s=10)
    assert outcomes["frames"].artifact.counts["errors"] == 0
    assert frame_rows(recipe) == undisturbed.frames
    after = shards(pool)
    assert len(before) < len(after) == VIDEOS // SHARD
    assert done_again(before, after) <= 1


def test_an_actor_that_is_killed_while_it_labels_is_replaced(undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe = undisturbed.elsewhere(tmp_path)
    run(recipe, until_stage="frames")
    pool = labels_pool(Storage(recipe.workspace), recipe)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run, recipe, until_stage="labels")
        wait_until(lambda: len(shards(pool)) >= 2, alive=lambda: not running.done())
        before = shards(pool)
        victim = worker_at("MapWorker(", alive=lambda: not running.done())
        kill(victim)
        outcomes = running.result(timeout=200)
    assert actions(outcomes)["labels"] == "done"
    assert label_rows(recipe) == undisturbed.labels
    after = shards(pool)
    assert len(before) < len(after)
    assert done_again(before, after) <= 1


def test_what_a_killed_run_left_of_its_ray_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Short, because of the sockets in it.
    with tempfile.TemporaryDirectory(prefix="t-") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        monkeypatch.setattr(tempfile, "tempdir", None)
        code = (
            "from pipelines.recipe.resources import ResourcesConfig\n"
            "from pipelines.resources.ray_session import ray_session\n"
            "with ray_session(ResourcesConfig(local_cpus=1, local_object_store_gb=0.1)):\n"
            "    print('ready', flush=True)\n"
            "    input()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"ready\n"
            started = descendants(driver.pid)
            (of_driver,) = Path(temporary).iterdir()
            remove_dead_sessions()
            assert of_driver.exists(), "its owner lives"
            driver.kill()
        own, given_back, of_others = make_session_folder(), make_session_folder(), Path(temporary) / "ray-of-others"
        keep_session_folder(given_back)
        of_others.mkdir()
        with caplog.at_level(logging.INFO):
            remove_dead_sessions()
        assert {*Path(temporary).iterdir()} == {own, given_back, of_others}
        assert str(of_driver) in caplog.text
        assert f"process {driver.pid} " in caplog.text
        assert not wait_until_gone(started, timeout_s=30)
        assert Path(f"/proc/{os.getpid()}").exists()
