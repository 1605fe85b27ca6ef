"""Runs that are killed in the middle of a stage and started again; trainings are in test_killed_trainings.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.run import main
from pipelines.graph import make_graph
from pipelines.train.files import RAY_TRAIN
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.storage import Storage
from tests.faults.finished_run import FinishedRun, pools
from tests.jobs.contents import frame_rows, label_rows, shards, videos_in
from tests.jobs.killing import workers_at
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


@pytest.mark.parametrize(
    ("stage", "work"), [("evaluation", "RetrievalScorerActor.tile"), ("qa_evaluation", "AnswererActor.answer")]
)
def test_an_evaluation_whose_driver_is_killed_is_made_anew(
    stage: str, work: str, full_run: FinishedRun, tmp_path: Path
) -> None:
    recipe = full_run.until_before(stage, tmp_path)
    full_run.kill(recipe, stage, lambda: bool(workers_at(work)))
    graph = make_graph(recipe)
    assert not graph.output(stage).files(), "nothing half-made is visible"

    outcomes = run(recipe, graph, until_stage=stage)
    assert actions(outcomes) == {name: "done" if name == stage else "skipped" for name in outcomes}
    found, expected = (make_graph(each).output(stage).read_json("metrics.json") for each in (recipe, full_run.recipe))
    # Where the model lies; its content is the same.
    assert found.pop("checkpoint") != expected.pop("checkpoint")
    assert found == expected


@pytest.mark.parametrize("stage", ["frames", "labels"])
def test_work_that_is_forced_and_killed_leaves_the_old_to_others_and_goes_on(
    stage: str, full_run: FinishedRun, tmp_path: Path
) -> None:
    recipe = full_run.until_before("estimator", tmp_path)
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


def planned(recipe_file: Path, workspace: Storage, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines of the plan of a workspace, without the one that names it."""
    capsys.readouterr()
    assert main(["--config", str(recipe_file), "--workspace", workspace.uri, "--plan", *options]) == 0
    return capsys.readouterr().out.splitlines()[1:]


def test_a_plan_is_the_same_for_a_folder_and_for_a_bucket(
    full_run: FinishedRun, bucket: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Storage(str(tmp_path / "workspace"))
    # Checkpoints and logs, which no plan looks at, are left out.
    for path in sorted(Path(full_run.recipe.workspace).rglob("*.*")):
        if path.suffix in (".json", ".jsonl", ".parquet") and RAY_TRAIN not in path.parts:
            for workspace in (folder, bucket):
                workspace.write_bytes(path.relative_to(full_run.recipe.workspace).as_posix(), path.read_bytes())

    def plan(*options: str) -> dict[str, str]:
        """State and reason of each stage, the same in both places."""
        lines = planned(full_run.recipe_file, folder, capsys, *options)
        assert lines == planned(full_run.recipe_file, bucket, capsys, *options)
        return {match[1]: match[2] for line in lines if (match := re.match(r"(\w+) +[0-9a-f]{16}  (\w.*)", line))}

    def delete(name: str) -> None:
        for workspace in (folder, bucket):
            workspace.delete(name)

    graph = make_graph(full_run.recipe)
    labels, frames, retrieval = (f"{name}/{graph.fingerprints[name]}" for name in ("labels", "frames", "retrieval"))
    pool = {name: f"shards/{Path(pools(full_run.recipe)[name].storage.path()).name}" for name in ("labels", "frames")}
    states = plan()
    assert list(states) == full_run.stages
    # Whoever copies a workspace is told that its videos have other addresses now.
    assert re.match("damaged +the workspace was moved", states.pop("manifest"))
    assert {words.split()[0] for words in states.values()} == {"done"}
    assert "invalidated by epochs 6 → 7" in plan("--retrieval.epochs", "7")["retrieval"]
    assert plan("--force", "[labels]")["labels"].startswith("forced")
    assert plan("--force", "[labels]")["estimator"].startswith("outdated")
    delete(f"{retrieval}/{ARTIFACT}")
    assert re.match(r"partial +stopped at step \d+", plan()["retrieval"])
    delete(f"{labels}/{ARTIFACT}")
    for shard in folder.files(pool["labels"], suffix=".parquet")[:2]:
        delete(f"{pool['labels']}/{shard}")
    videos = int(graph.artifact("labels").counts["videos"])  # type: ignore[union-attr]
    assert re.match(rf"partial +{videos - 6} of {videos} videos are done", plan()["labels"])
    delete(f"{pool['frames']}/{folder.files(pool['frames'], suffix='.parquet')[0]}")
    assert re.match(r"damaged +1 of its shards are missing", plan()["frames"])
    delete(f"{frames}/{ARTIFACT}")
    assert plan()["frames"].startswith("partial")
    assert plan("--frames.jpeg_quality", "50")["frames"].startswith("missing")
