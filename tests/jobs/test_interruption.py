"""A run that is killed, run again, and run once more with new videos: only what is missing is done."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.configs import Recipe, ShapesConfig
from pipelines.data.frames_stage import frames_pool
from pipelines.data.shapes import VIDEOS_FOLDER, write_clips
from pipelines.records import INDEX_FILE
from pipelines.storage import Storage
from tests.jobs.killing import kill_when
from tests.jobs.recipes import actions, command, read, run, write_recipe

pytestmark = pytest.mark.slow

VIDEOS, NEW_VIDEOS, SHARD = 240, 5, 4


class DataSet:
    """A captions file over copies of a few clips, which may grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clips = Storage(str(folder / "clips"))
        config = ShapesConfig(train_videos=6, test_videos=1, image_size_px=32, duration_s=2.0)
        write_clips(config, range(6), clips)
        self._clips = sorted((folder / "clips" / VIDEOS_FOLDER).iterdir())
        self.file = folder / "videos" / "captions.csv"
        self.file.parent.mkdir()
        self._rows: list[list[str]] = []

    def add(self, count: int) -> None:
        for number in range(len(self._rows), len(self._rows) + count):
            name = f"clip{number}.mp4"
            shutil.copy(self._clips[number % len(self._clips)], self.file.parent / name)
            self._rows.append([name, f"caption {number}", "test" if number % 10 == 0 else "train"])
        with self.file.open("w", newline="") as file:
            csv.writer(file).writerows([["path", "caption", "split"], *self._rows])


def shards(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """The committed frame shards, each with what changes when it is written again."""
    storage = frames_pool(Storage(recipe.workspace), recipe).storage
    states = {name: Path(storage.path(name)).stat() for name in storage.files()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def videos_in(recipe: Recipe, names: Iterable[str]) -> list[str]:
    storage = frames_pool(Storage(recipe.workspace), recipe).storage
    return sorted(
        video
        for name in names
        for video in storage.read_table(name, columns=["video_id"]).column("video_id").to_pylist()
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    data = DataSet(tmp_path_factory.mktemp("interruption"))
    data.add(VIDEOS)
    return data


@pytest.fixture(scope="module")
def recipe_file(data: DataSet) -> Path:
    return write_recipe(
        data.folder,
        data={"dataset": "captions_file", "annotations": str(data.file), "validation_videos": 20},
        frames={"fps": 4, "max_frames": 6, "short_side_px": 32, "videos_per_shard": SHARD},
    )


def test_a_killed_run_goes_on_at_the_video(recipe_file: Path, ray_local: Any) -> None:
    recipe = read(recipe_file)
    kill_when(command(recipe_file, "--until_stage", "frames"), lambda: len(shards(recipe)) >= 6)
    before = shards(recipe)
    assert 6 <= len(before) < VIDEOS // SHARD, "the driver was killed in the middle"

    outcomes = run(recipe, until_stage="frames")
    assert actions(outcomes) == {"manifest": "skipped", "frames": "done"}
    step = outcomes["frames"].step
    assert (step.state, step.reason) == ("partial", f"{len(before) * SHARD} of {VIDEOS} videos are done")
    assert outcomes["frames"].artifact.counts["rows"] == VIDEOS
    after = shards(recipe)
    # What was committed was not done again, so each worker lost at most the shard in its hands.
    assert {name: after[name] for name in before} == before
    # And what it lost came back in the same pieces.
    assert len(after) == VIDEOS // SHARD
    assert len(set(videos_in(recipe, after))) == len(videos_in(recipe, after)) == VIDEOS

    assert set(actions(run(recipe, until_stage="frames")).values()) == {"skipped"}


def test_new_videos_cost_the_work_of_new_videos(data: DataSet, recipe_file: Path, ray_local: Any) -> None:
    run(read(recipe_file), until_stage="frames")
    before = shards(read(recipe_file))
    data.add(NEW_VIDEOS)
    recipe = read(recipe_file)
    outcomes = run(recipe, until_stage="frames")
    assert actions(outcomes) == {"manifest": "done", "frames": "done"}
    assert outcomes["manifest"].step.reason.startswith("invalidated by digest")
    assert outcomes["frames"].step.reason == "invalidated by a new manifest"
    after = shards(recipe)
    assert {name: after[name] for name in before} == before
    assert len(videos_in(recipe, after.keys() - before.keys())) == NEW_VIDEOS
    artifact = outcomes["frames"].artifact
    assert artifact.counts["rows"] == VIDEOS + NEW_VIDEOS
    assert len(artifact.storage.read_table(INDEX_FILE)) == VIDEOS + NEW_VIDEOS


def test_a_setting_of_the_frames_decodes_all_of_them_again_and_going_back_none(
    recipe_file: Path, ray_local: Any
) -> None:
    run(read(recipe_file), until_stage="frames")
    before = shards(read(recipe_file))
    other = read(recipe_file, "--frames.jpeg_quality", "50")
    outcomes = run(other, until_stage="frames")
    assert actions(outcomes) == {"manifest": "skipped", "frames": "done"}
    assert outcomes["frames"].step.reason == "invalidated by jpeg_quality 90 → 50"
    assert videos_in(other, shards(other)) == videos_in(other, before)
    assert set(actions(run(read(recipe_file), until_stage="frames")).values()) == {"skipped"}
    assert shards(read(recipe_file)) == before
