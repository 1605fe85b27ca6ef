"""A run that is run again, with changed data and settings: only what is missing is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import FramesStage, frames_pool
from pipelines.stages.labels import LabelsStage, labels_pool
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.runs import leftovers
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.jobs.clips import ClipsFile
from tests.jobs.contents import assert_labels_equal_up_to_rounding, frame_rows, label_rows, shards, videos_in
from tests.jobs.recipes import actions, raise_version, read, run, write_recipe

pytestmark = pytest.mark.slow

VIDEOS, NEW_VIDEOS, SHARD = 20, 5, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ClipsFile:
    data = ClipsFile(tmp_path_factory.mktemp("interruption"))
    data.add(VIDEOS)
    return data


@pytest.fixture(scope="module")
def recipe_file(data: ClipsFile) -> Path:
    settings = {**data.settings, "validation_videos": 5}
    return write_recipe(data.file.parent, data=settings)


def pool_of(recipe: Recipe) -> ShardPool:
    return frames_pool(Storage(recipe.workspace), recipe)


def test_new_videos_cost_the_work_of_new_videos(data: ClipsFile, recipe_file: Path) -> None:
    run(read(recipe_file), until_stage="frames")
    pool = pool_of(read(recipe_file))
    before = shards(pool)
    new = data.add(NEW_VIDEOS)
    recipe = read(recipe_file)
    outcomes = run(recipe, until_stage="frames")
    assert actions(outcomes) == {"manifest": "done", "frames": "done"}
    assert outcomes["manifest"].step.reason.startswith("invalidated by digest")
    assert outcomes["frames"].step.reason == "invalidated by a new manifest"
    after = shards(pool)
    assert {name: after[name] for name in before} == before
    assert len(videos_in(pool, after.keys() - before.keys())) == len(new)
    artifact = outcomes["frames"].artifact
    assert artifact.counts["rows"] == VIDEOS + NEW_VIDEOS
    assert len(artifact.storage.read_table(INDEX_FILE)) == VIDEOS + NEW_VIDEOS


def test_a_setting_of_the_frames_decodes_all_of_them_again_and_going_back_none(recipe_file: Path) -> None:
    run(read(recipe_file), until_stage="frames")
    before = shards(pool_of(read(recipe_file)))
    other = read(recipe_file, "--frames.jpeg_quality", "50")
    outcomes = run(other, until_stage="frames")
    assert actions(outcomes) == {"manifest": "skipped", "frames": "done"}
    assert outcomes["frames"].step.reason == "invalidated by jpeg_quality 90 → 50"
    pool = pool_of(other)
    assert videos_in(pool, shards(pool)) == videos_in(pool_of(read(recipe_file)), before)
    assert set(actions(run(read(recipe_file), until_stage="frames")).values()) == {"skipped"}
    assert shards(pool_of(read(recipe_file))) == before


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[ClipsFile, Path]]:
    """A few videos with two captions each, decoded and labelled."""
    data = ClipsFile(tmp_path)
    data.add(20, captions=2)
    path = write_recipe(
        tmp_path,
        data={**data.settings, "validation_videos": 4},
        labels={"videos_per_shard": 3, "batch_size": 3},
    )
    run(read(path), until_stage="labels")
    yield data, path


def test_new_captions_label_their_videos_again_and_decode_none_and_less_videos_do_nothing(
    small: tuple[ClipsFile, Path],
) -> None:
    data, path = small
    recipe = read(path)
    frames, labels = pool_of(recipe), labels_pool(Storage(recipe.workspace), recipe)
    decoded, labelled = shards(frames), shards(labels)
    for name in ("00003.mp4", "00017.mp4"):
        data.caption(name, "another caption")
    outcomes = run(read(path), until_stage="labels")
    assert actions(outcomes) == dict.fromkeys(("manifest", "frames", "labels"), "done")
    assert shards(frames) == decoded
    new = shards(labels)
    assert {name: new[name] for name in labelled} == labelled
    (shard,) = new.keys() - labelled.keys()
    ids = labels.storage.read_table(shard).column("video_id").to_pylist()
    assert [sum(name in video for video in ids) for name in ("00003", "00017")] == [3, 3]
    assert len(ids) == 6
    rows = label_rows(read(path))
    assert len(rows) == 18 * 2 + 2

    data.remove("00003.mp4")
    data.remove("00010.mp4")
    outcomes = run(read(path), until_stage="labels")
    assert actions(outcomes) == dict.fromkeys(("manifest", "frames", "labels"), "done")
    assert shards(frames) == decoded
    assert shards(labels) == new
    assert outcomes["frames"].artifact.counts["rows"] == 18
    left = {pair: row for pair, row in rows.items() if "00003" not in row["video_id"]}
    assert label_rows(read(path)) == left


def test_raising_the_version_of_a_stage_makes_its_rows_again_and_what_is_made_of_them(
    small: tuple[ClipsFile, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = small
    recipe = read(path)
    old = [pool_of(recipe), labels_pool(Storage(recipe.workspace), recipe)]
    before = [shards(pool) for pool in old]
    raise_version(monkeypatch, LabelsStage)
    outcomes = run(recipe, until_stage="labels")
    assert actions(outcomes) == {"manifest": "skipped", "frames": "skipped", "labels": "done"}
    assert outcomes["labels"].step.reason == "the stage's code changed (version 1 → 2)"
    assert outcomes["labels"].artifact.counts["work/rows"] == 18, "two of the videos are tested with"
    raise_version(monkeypatch, FramesStage)
    outcomes = run(recipe, until_stage="labels")
    assert outcomes["frames"].artifact.counts["work/rows"] == 20
    assert outcomes["labels"].artifact.counts["work/rows"] == 18, "labels of other frames"
    assert [shards(pool) for pool in old] == before
    assert set(actions(run(recipe, until_stage="labels")).values()) == {"skipped"}


def test_forced_work_is_done_beside_the_old_which_others_go_on_reading(small: tuple[ClipsFile, Path]) -> None:
    data, path = small
    recipe = read(path)
    frames, labels = pool_of(recipe), labels_pool(Storage(recipe.workspace), recipe)
    decoded, labelled, rows, pairs = shards(frames), shards(labels), frame_rows(recipe), label_rows(recipe)
    data.remove("00003.mp4")
    run(recipe, until_stage="labels")
    outcomes = run(recipe, until_stage="labels", force=["frames"])
    assert actions(outcomes) == {"manifest": "skipped", "frames": "done", "labels": "done"}
    after = shards(frames)
    new = after.keys() - decoded.keys()
    assert {name: after[name] for name in decoded} == decoded
    assert len(videos_in(frames, new)) == 19
    index = outcomes["frames"].artifact.storage.read_table(INDEX_FILE)
    assert set(index.column("shard").to_pylist()) == new
    assert frame_rows(recipe) == {video: row for video, row in rows.items() if "00003" not in video}
    # The same frames have the same labels, unless these are asked for, too.
    assert shards(labels) == labelled
    run(recipe, until_stage="labels", force=["labels"])
    assert {name: state for name, state in shards(labels).items() if name in labelled} == labelled
    assert len(videos_in(labels, shards(labels).keys() - labelled.keys())) == 17 * 2
    kept = {pair: row for pair, row in pairs.items() if "00003" not in pair[0]}
    assert_labels_equal_up_to_rounding(label_rows(recipe), kept, recipe)
    # The longer list is as it was, and all of its rows are there.
    data.restore("00003.mp4")
    assert set(actions(run(recipe, until_stage="labels")).values()) == {"skipped"}
    assert (frame_rows(recipe), label_rows(recipe)) == (rows, pairs)
    assert leftovers(Storage(recipe.workspace)) == []
