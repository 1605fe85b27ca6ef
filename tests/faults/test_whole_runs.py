"""Whole runs on a full disk, on a store in trouble, with a damaged shard, and with a loss that explodes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.stages.frames import frames_pool
from pipelines.train.files import HISTORY, NON_FINITE, RAY_TRAIN
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.faults.conftest import SmallDisk, mounted
from tests.faults.finished_run import assert_same_weights
from tests.faults.flaky_s3 import FlakyS3
from tests.jobs.recipes import RAY, RESOURCES, TASKS_AND_ACTORS, command, read, run, run_command, write_recipe
from tests.recipe_options import recipe_with

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault, pytest.mark.timeout(900)]

VIDEOS = 40


def recipe_file(folder: Path, **sections: Any) -> Path:
    """A recipe over generated videos whose only training is that of the retrieval model, on one worker."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_recipe(
        folder,
        data={
            "shapes": {"train_videos": VIDEOS - 8, "test_videos": 8, "image_size_px": 32, "duration_s": 2.0},
            "validation_videos": 8,
        },
        resources={**RAY, **TASKS_AND_ACTORS, "retrieval": {"workers": 1, "max_failures": 0}},
        **sections,
    )
    document = yaml.safe_load(path.read_text())
    document["model"]["game"]["teacher"] = "exact"
    path.write_text(yaml.safe_dump(document))
    return path


def start(recipe: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, or to where it gives up."""
    return run_command(command(recipe, *options), timeout_s=600)


def go_on(recipe: Path, until_stage: str | None = None) -> dict[str, str]:
    """Runs it in this process, where tasks, actors and workers are not the subject; how each stage was found."""
    document = yaml.safe_load(recipe.read_text()) | {"resources": RESOURCES}
    return {name: outcome.step.state for name, outcome in run(recipe_with(document), until_stage=until_stage).items()}


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a run says why it stopped."""
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if " ERROR   jobs: " in line]
    assert "Traceback" not in done.stderr.split(line)[1]
    return line


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What a run printed that came to its end."""
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def shards(pool: ShardPool) -> dict[str, tuple[int, int]]:
    """The committed shards, each with what changes when it is written again."""
    states = {name: Path(pool.storage.path(name)).stat() for name in pool.storage.files(suffix=".parquet")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def test_a_disk_that_fills_up_with_frames_costs_the_shards_that_did_not_fit(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    pool = frames_pool(Storage(read(recipe).workspace), read(recipe))
    go_on(recipe, "manifest")
    with mounted(tmp_path / "workspace" / "shards", 1 << 20) as disk:
        disk.fill(leave=100 << 10)
        line = refused(start(recipe, "--until_stage", "frames"))
        assert f"cannot write {pool.storage.uri}/" in line and "No space left" in line and "make room" in line
        before = shards(pool)
        assert 0 < len(before) < VIDEOS // 4
        assert not [path for path in disk.path.rglob("*") if path.name.startswith(".tmp")]
        assert len(pool.index()) == 4 * len(before), "every one that is visible is whole"
        disk.make_room()
        assert go_on(recipe, "frames") == {"shapes": "done", "manifest": "done", "frames": "partial"}
        after = shards(pool)
        assert {name: after[name] for name in before} == before, "what was done is not done again"
        assert len(set(pool.index().column("key").to_pylist())) == VIDEOS


def test_a_disk_without_room_for_the_next_checkpoint_costs_the_steps_since_the_last(tmp_path: Path) -> None:
    settings = {"epochs": 2, "batch_size": 8, "augmentation": {"operations": 1}}
    recipe, unhindered = (recipe_file(tmp_path / name, retrieval=settings) for name in ("full", "unhindered"))
    go_on(unhindered, "retrieval")
    go_on(recipe, "frames")
    # A checkpoint has 20 MB: there is room for the first, and not for a second beside it.
    with mounted(tmp_path / "full" / "workspace" / "retrieval", 30 << 20) as disk:
        line = refused(start(recipe, "--until_stage", "retrieval"))
        output = make_graph(read(recipe)).output("retrieval")
        # Whichever finds no room first: the worker that writes the checkpoint, or the driver that writes the curve.
        assert f"cannot keep a checkpoint in {output.uri}/{RAY_TRAIN}" in line or f"cannot write {output.uri}/" in line
        assert "make room" in line
        # Steps of the first epoch, with figures that no second run would give again.
        before = output.read_bytes(HISTORY).splitlines()[:3]
        assert not output.exists(MODEL), "no half model is visible"
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk.path)], check=True)
        printed = succeeded(start(recipe, "--until_stage", "retrieval"))
        assert re.search(r"(?m)^retrieval +[0-9a-f]{16} +partial", printed)
        assert output.read_bytes(HISTORY).splitlines()[:3] == before, "the first epoch is not done again"
        assert_same_weights(read(recipe), read(unhindered), "retrieval")


def test_a_full_disk_under_the_database_of_mlflow_costs_no_finished_work(
    small_disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk.path)], check=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk.path}/mlflow.db")
    recipe = recipe_file(tmp_path)
    go_on(recipe, "shapes")
    small_disk.fill(leave=8 << 10)
    line = refused(start(recipe, "--until_stage", "frames"))
    assert f"cannot record the run in sqlite:///{small_disk.path}/mlflow.db" in line and "Make room" in line
    small_disk.make_room()
    assert go_on(recipe, "frames")["shapes"] == "done"


def test_a_run_on_a_store_that_fails_again_and_again_gives_the_same_results(s3: FlakyS3, tmp_path: Path) -> None:
    alone, troubled = recipe_file(tmp_path / "alone"), recipe_file(tmp_path / "troubled")
    troubled.write_text(re.sub(r"(?m)^workspace: .*$", f"workspace: s3://bucket/{tmp_path.name}", troubled.read_text()))
    go_on(alone)
    counter = itertools.count()
    faults = [
        s3.refuse(1 << 30, status=503, strikes=lambda request: next(counter) % 11 == 0),
        s3.refuse(1 << 30, status=500, strikes=lambda request: next(counter) % 13 == 0),
        s3.cut(1 << 30, answer=True, strikes=lambda request: request.method == "GET" and next(counter) % 17 == 0),
        s3.cut(1 << 30, strikes=lambda request: request.method == "PUT" and next(counter) % 7 == 0),
        s3.delay(5, 4.0, strikes=lambda request: next(counter) % 101 == 0),
    ]
    succeeded(start(troubled))
    assert all(fault.struck for fault in faults), [fault.struck for fault in faults]
    s3.heal()
    results = [make_graph(read(recipe)).output("evaluation") for recipe in (alone, troubled)]
    metrics = [result.read_json("metrics.json") for result in results]
    assert [document.pop("checkpoint").rpartition("/")[2] for document in metrics] == [MODEL, MODEL]
    assert metrics[0] == metrics[1]
    assert_same_weights(read(alone), read(troubled), "retrieval")


def test_a_store_that_dies_during_a_run_costs_what_was_not_finished(
    s3: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "8")  # 6 s a request instead of 100
    recipe = recipe_file(tmp_path)
    place = f"s3://bucket/{tmp_path.name}"
    recipe.write_text(re.sub(r"(?m)^workspace: .*$", f"workspace: {place}", recipe.read_text()))
    go_on(recipe, "manifest")
    pool = frames_pool(Storage(place), read(recipe))
    written = itertools.count()
    # From the fourth shard on, nothing is answered any more.
    dead = {"since": 1 << 30}

    def dies(request: Any) -> bool:
        if "/shards/" in request.path and request.is_upload_of_a_part and next(written) == 3:
            dead["since"] = 0
        return dead["since"] == 0

    s3.refuse(1 << 30, strikes=dies)
    line = refused(start(recipe, "--until_stage", "frames"))
    assert re.search(rf"cannot \w+( at)? {place}/", line) and "run the same command again" in line
    s3.heal()
    before = set(pool.storage.files(suffix=".parquet"))
    assert 0 < len(before) < VIDEOS // 4
    assert len(pool.index()) == 4 * len(before), "every one that is visible is whole"
    s3.requests.clear()
    assert go_on(recipe, "frames")["frames"] == "partial"
    again = {request.path.partition("?")[0].rpartition("/")[2] for request in s3.requests if request.method == "PUT"}
    assert not before & again, "what was done is not done again"
    assert len(set(pool.index().column("key").to_pylist())) == VIDEOS


def test_a_shard_that_is_damaged_before_the_training_is_mended_by_the_same_command(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    go_on(recipe, "frames")
    pool = frames_pool(Storage(read(recipe).workspace), read(recipe))
    index = make_graph(read(recipe)).output("frames").read_table("index.parquet")
    before = shards(pool)
    (victim, *_) = sorted({row["shard"] for row in index.to_pylist() if row["split"] == "train"})
    path = Path(pool.storage.path(victim))
    # In the middle of the frames: the list of keys can still be read, so only the training finds it.
    content = bytearray(path.read_bytes())
    start_of_frame = content.index(b"\xff\xd8\xff") + 400
    content[start_of_frame] ^= 255
    path.write_bytes(content)
    line = refused(start(recipe, "--until_stage", "retrieval"))
    assert str(path) in line and "set aside" in line and "Run the same command again" in line
    assert path.with_name(f"{path.name}.damaged").exists()
    assert go_on(recipe, "retrieval")["frames"] == "damaged"
    after = shards(pool)
    assert {name: after[name] for name in before if name != victim} == {
        name: state for name, state in before.items() if name != victim
    }
    assert len(set(pool.index().column("key").to_pylist())) == VIDEOS


def test_a_loss_that_explodes_stops_the_run_with_its_last_checkpoint_and_its_batch(tmp_path: Path) -> None:
    recipe = recipe_file(
        tmp_path,
        retrieval={
            "epochs": 3,
            "batch_size": 8,
            "augmentation": {"enabled": False},
            "optimizer": {"lr": 1e30, "clip_lr_factor": 1.0, "max_grad_norm": 1e30},
            "checkpoint": {"every_steps": 1},
        },
    )
    line = refused(start(recipe, "--until_stage", "retrieval"))
    output = make_graph(read(recipe)).output("retrieval")
    report = output.read_json(NON_FINITE)
    assert f"is {report['value']} at step {report['step']}" in line
    assert output.place(NON_FINITE) in line
    assert [len(part["rows"]) for part in report["ranks"]] == [8]
    checkpoint = Path(report["last_checkpoint"])
    assert json.loads((checkpoint / "position.json").read_text())["step"] <= report["step"]
    assert not output.exists("artifact.json")
