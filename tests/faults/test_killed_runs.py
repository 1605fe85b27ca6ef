"""Frames and labels whose run is killed in the middle, and started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.finished_run import FinishedRun, pools
from tests.jobs.contents import frame_rows, label_rows, shards, videos_in
from tests.jobs.recipes import actions, run

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault, pytest.mark.timeout(1800)]

ROWS = {"frames": frame_rows, "labels": label_rows}


def test_frames_whose_driver_is_killed_go_on_at_the_shard(full_run: FinishedRun, tmp_path: Path) -> None:
    recipe = full_run.until_before("frames", tmp_path)
    pool = pools(recipe)["frames"]
    full_run.kill(recipe, "frames", lambda: len(shards(pool)) >= 3)
    before, total = shards(pool), shards(pools(full_run.recipe)["frames"])
    assert 3 <= len(before) < len(total), "the driver was killed in the middle"
    decoded = len(videos_in(pool, before))

    outcomes = run(recipe, until_stage="frames")
    done = actions(outcomes)
    assert done.pop("frames") == "done"
    assert set(done.values()) == {"skipped"}
    step, counts = outcomes["frames"].step, outcomes["frames"].artifact.counts
    assert (step.state, step.reason) == ("partial", f"{decoded} of {counts['rows']:.0f} videos are done")
    after = shards(pool)
    # What was committed was not done again, so each worker lost at most the shard in its hands.
    assert {name: after[name] for name in before} == before
    # And what it lost came back in the same pieces.
    assert after.keys() == total.keys()
    assert frame_rows(recipe) == frame_rows(full_run.recipe)

    assert set(actions(run(recipe, until_stage="frames")).values()) == {"skipped"}


def test_labels_whose_driver_is_killed_go_on_at_the_shard(full_run: FinishedRun, tmp_path: Path) -> None:
    recipe = full_run.until_before("labels", tmp_path)
    pool = pools(recipe)["labels"]
    full_run.kill(recipe, "labels", lambda: len(shards(pool)) >= 3)
    before, total = shards(pool), shards(pools(full_run.recipe)["labels"])
    assert 3 <= len(before) < len(total), "the driver was killed in the middle"
    made = len(set(videos_in(pool, set(before))))

    outcomes = run(recipe, until_stage="labels")
    videos = int(outcomes["labels"].artifact.counts["videos"])
    step = outcomes["labels"].step
    assert (step.state, step.reason) == ("partial", f"{made} of {videos} videos are done")
    assert outcomes["labels"].artifact.counts["work/rows"] == videos - made, "only what was missing is done"
    after = shards(pool)
    assert {name: after[name] for name in before} == before, "what was done is not done again"
    assert after.keys() == total.keys(), "what was in the hands of the actor comes back in the same pieces"
    assert label_rows(recipe) == label_rows(full_run.recipe)


@pytest.mark.parametrize("stage", ["frames", "labels"])
def test_work_that_is_forced_and_killed_leaves_the_old_to_others_and_goes_on(
    stage: str, full_run: FinishedRun, tmp_path: Path
) -> None:
    recipe = full_run.until("labels", tmp_path)
    pool = pools(recipe)[stage]
    old, rows = shards(pool), ROWS[stage](recipe)
    one_by_one = ("--resources.decode.max_tasks", "1")
    full_run.kill(recipe, stage, lambda: len(shards(pool)) >= len(old) + 3, "--force", f"[{stage}]", *one_by_one)
    before = shards(pool)
    assert len(old) + 3 <= len(before) < 2 * len(old), "the driver was killed in the middle"
    assert {name: before[name] for name in old} == old
    made = len(set(videos_in(pool, before.keys() - old.keys())))

    # Without asking again for everything anew.
    outcomes = run(recipe, until_stage=stage)
    step, counts = outcomes[stage].step, outcomes[stage].artifact.counts
    videos = int(counts["rows"] if stage == "frames" else counts["videos"])
    assert (step.state, step.reason) == ("partial", f"{made} of {videos} videos are done")
    assert counts["work/rows"] == videos - made
    after = shards(pool)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(old), "every shard was made anew, and no shard twice"
    assert ROWS[stage](recipe) == rows
