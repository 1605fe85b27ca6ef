"""Evaluations whose run is killed; and plans of a workspace that was copied, and from which files are lost."""

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
from tests.jobs.killing import workers_at
from tests.jobs.recipes import actions, run

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault, pytest.mark.timeout(1800)]


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


def planned(recipe_file: Path, workspace: Storage, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines of the plan of a workspace, without the one that names it."""
    capsys.readouterr()
    assert main(["--config", str(recipe_file), "--workspace", workspace.uri, "--plan", *options]) == 0
    return capsys.readouterr().out.splitlines()[1:]


def test_a_plan_is_the_same_for_a_folder_and_for_a_bucket(
    full_run: FinishedRun, bucket: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_run.finish(full_run.stages[-1])
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
    assert "invalidated by epochs 4 → 7" in plan("--retrieval.epochs", "7")["retrieval"]
    assert plan("--force", "[labels]")["labels"].startswith("forced")
    assert plan("--force", "[labels]")["estimator"].startswith("outdated")
    delete(f"{retrieval}/{ARTIFACT}")
    assert re.match(r"partial +stopped at step \d+", plan()["retrieval"])
    delete(f"{labels}/{ARTIFACT}")
    for shard in folder.files(pool["labels"], suffix=".parquet")[:2]:
        delete(f"{pool['labels']}/{shard}")
    made = graph.artifact("labels")
    assert made is not None
    videos = int(made.counts["videos"])
    assert re.match(rf"partial +{videos - 6} of {videos} videos are done", plan()["labels"])
    delete(f"{pool['frames']}/{folder.files(pool['frames'], suffix='.parquet')[0]}")
    assert re.match(r"damaged +1 of its shards are missing", plan()["frames"])
    delete(f"{frames}/{ARTIFACT}")
    assert plan()["frames"].startswith("partial")
    assert plan("--frames.jpeg_quality", "50")["frames"].startswith("missing")
