"""Tunings as a user runs them: concurrent trials, failures, an interruption, and what they end in."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.tune import main, read_tuning
from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.train.files import HISTORY, SCORE
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.run import run_tuning
from pipelines.tune.tuning import BEST_RECIPE, POPULATION, SUMMARY, Tuning, is_done
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.storage import Storage
from tests.jobs.killing import kill_when
from tests.jobs.recipes import actions, read, run, run_command, write_recipe

pytestmark = pytest.mark.slow

LR, QUALITY, KL = "retrieval.optimizer.lr", "frames.jpeg_quality", "model.loss.kl"
GOOD, BAD, DIVERGING = 3e-3, 1e-9, 1e30
EPOCHS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over generated clips, and the workspace of all tunings below."""
    folder = tmp_path_factory.mktemp("tune")
    write_recipe(
        folder,
        data={
            "validation_videos": 8,
            "shapes": {
                "train_videos": 32,
                "test_videos": 6,
                "captions_per_video": 2,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
        },
        retrieval={
            "epochs": EPOCHS,
            "batch_size": 8,
            "augmentation": {"enabled": False},
            "optimizer": {"lr": GOOD, "clip_lr_factor": 1.0, "warmup_fraction": 0},
        },
        resources={"local_cpus": 2, "local_object_store_gb": 0.15, "decode": {"max_tasks": 0}},
    )
    return folder


def write_tuning(folder: Path, name: str, **settings: Any) -> list[str]:
    """Writes a tune file; returns the options of a command that runs it."""
    document = {
        # Ranks differ where recalls of so few videos do not.
        "metric": "validation/text_to_video/mean_rank",
        "direction": "min",
        "finalists": 1,
        "seeds": 1,
        "recipe": {"model": {"game": {"teacher": "none"}}},
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return ["--config", str(folder / "recipe.yaml"), "--tune", str(path)]


def tuning_of(options: Sequence[str]) -> Tuning:
    tuning, _ = read_tuning(options)
    return tuning


def test_the_former_option_is_taken_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = write_tuning(
        folder, "former", space={KL: "grid 1 2"}, sampler={"name": "grid"}, scheduler={"name": "none"}
    )
    former = [option.replace("--tune", "--search") for option in options]
    expected = tuning_of([*options, "--tune.trials=7"])
    assert capsys.readouterr().err == ""
    tuning = tuning_of([*former, "--search.trials=7"])
    assert "--search is --tune now" in capsys.readouterr().err
    assert (tuning.config, tuning.fingerprint) == (expected.config, expected.fingerprint)


@dataclass(frozen=True)
class Tuned:
    """A tuning that was run to its end."""

    tuning: Tuning
    processes: Mapping[str, int]
    """Of each trial."""

    @property
    def records(self) -> dict[str, TrialRecord]:
        journal = Journal(self.tuning.storage)
        return {record.name: record for phase in ("trial", "final") for record in journal.of(phase)}  # type: ignore[arg-type]

    def output(self, record: TrialRecord) -> Storage:
        return self.tuning.graph.workspace.folder("retrieval", record.fingerprint)


@pytest.fixture(scope="module")
def tuned(folder: Path, ray_local: Any) -> Tuned:
    """A grid of four trials, one at a time: of the rates two are good, one learns nothing, one diverges.

    Each process loads PyTorch, which takes ten seconds of a core; trials side by side are of ``make test-tune``.
    """
    from pipelines.tune.ray_tune import DriverCallback

    options = write_tuning(
        folder,
        "grid",
        space={LR: f"grid {GOOD} {DIVERGING} {GOOD / 2} {BAD}"},
        trials=4,
        seeds=2,
        sampler={"name": "grid"},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2, "reports_per_epoch": 2},
        concurrent_trials=1,
        baselines={"half the rate": {LR: GOOD / 2}},
    )
    tuning = tuning_of(options)
    processes: dict[str, int] = {}

    class Noting(DriverCallback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            processes[str(trial)] = result["pid"]
            super().on_trial_result(iteration, trials, trial, result, **info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.tune.ray_tune.DriverCallback", Noting)
        run_tuning(tuning)
    return Tuned(tuning, processes)


def points(storage: Storage) -> list[dict[str, float]]:
    return [json.loads(line) for line in storage.read_bytes(HISTORY).splitlines()]


def test_every_setting_is_tried_and_bad_ones_are_ended_early(tuned: Tuned) -> None:
    trials = [record for record in tuned.records.values() if record.phase == "trial"]
    assert [record.values for record in trials] == [{LR: rate} for rate in (GOOD, DIVERGING, GOOD / 2, BAD)]
    good, diverging, half, bad = (record.state for record in trials)
    assert "finished" in (good, half)
    assert {good, half} <= {"finished", "stopped"}
    assert (diverging, bad) == ("failed", "stopped")
    for record in trials:
        if record.state == "stopped":
            assert record.reason == "asha: below the best 1/2 of those that came as far"
            # At the rung after the first epoch.
            assert [report.progress for report in record.reports] == [1, 2]
        if record.state == "finished":
            assert [report.progress for report in record.reports] == list(range(1, 2 * EPOCHS + 1))


def test_a_trial_that_raises_costs_itself(tuned: Tuned) -> None:
    (failed,) = (record for record in tuned.records.values() if record.values.get(LR) == DIVERGING)
    assert (failed.state, failed.value) == ("failed", None)
    assert failed.reason.startswith("NonFiniteLossError: the loss is")
    assert not tuned.output(failed).exists(ARTIFACT)


def test_stages_that_all_trials_share_run_once(tuned: Tuned) -> None:
    assert stages_of(tuned.tuning) == ["frames", "manifest", "shapes"]
    assert {len(tuned.tuning.graph.workspace.folders(name)) for name in ("shapes", "manifest", "frames")} == {1}


def test_trials_that_wait_for_no_stage_use_processes_again(tuned: Tuned) -> None:
    for phase in ("trial", "final"):
        processes = [tuned.processes[name] for name, record in tuned.records.items() if record.phase == phase]
        assert len(processes) >= 2
        assert len({*processes}) == 1


def stages_of(tuning: Tuning) -> list[str]:
    """The stages that a tuning ran, sorted."""
    parent, _ = runs_of(tuning)
    runs = [run for run in all_runs(tuning) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(run.data.tags["stage"] for run in runs if "stage" in run.data.tags)


def all_runs(tuning: Tuning) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tuning.recipe.workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("hbi")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def runs_of(tuning: Tuning) -> tuple[Any, dict[str, Any]]:
    """The parent run of a tuning, and its nested runs by the name of the trial."""
    runs = all_runs(tuning)
    (parent,) = (run for run in runs if run.data.tags.get("tuning") == tuning.fingerprint)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    trials = {run.data.tags["trial"]: run for run in children if "trial" in run.data.tags}
    assert len(trials) == sum("trial" in run.data.tags for run in children), "a trial has one run"
    return parent, trials


def curve(tuning: Tuning, run_id: str, name: str) -> list[tuple[int, float]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tuning.recipe.workspace}/mlflow.db")
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def assert_runs_are_complete(tuning: Tuning, records: Mapping[str, TrialRecord], *, output: Any) -> None:
    """Every trial has a nested run with its settings, every point of its history once, and why it ended."""
    parent, runs = runs_of(tuning)
    assert parent.info.status == "FINISHED"
    assert runs.keys() == records.keys()
    statuses = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    for name, record in records.items():
        run = runs[name]
        assert run.info.status == statuses[record.state], name
        assert run.data.tags["stop_reason"] == record.reason != ""
        assert run.data.tags["fingerprint"] == record.fingerprint
        assert {field: run.data.params[field] for field in record.values} == {
            field: str(value) for field, value in record.values.items()
        }
        assert run.data.params["seed"] == str(record.seed)
        written = points(output(record))
        for metric in ("train/loss", "epoch", SCORE, tuning.config.metric):
            expected = {int(point["step"]): point[metric] for point in written if metric in point}
            found = curve(tuning, run.info.run_id, metric)
            assert found == sorted(expected.items()), f"{metric} of {name}"
        assert record.state == "failed" or len(written) > 5
        assert Storage(run.data.tags["checkpoint"]).exists("") == (record.state != "failed")


def test_nested_runs_are_complete(tuned: Tuned) -> None:
    assert_runs_are_complete(tuned.tuning, tuned.records, output=tuned.output)


def test_a_finished_trial_is_an_artifact_without_its_optimizer(tuned: Tuned) -> None:
    for record in tuned.records.values():
        if record.state == "finished":
            output = tuned.output(record)
            assert {ARTIFACT, HISTORY} == set(output.files())
            assert set(output.folders()) == {MODEL, "code"}
            ends = [point for point in points(output) if point.get("epoch", 0.5) % 1 == 0 and SCORE in point]
            assert len(ends) == EPOCHS
            chosen = max(ends, key=lambda point: (point[SCORE], point["step"]))
            assert record.value == chosen[tuned.tuning.config.metric]


def test_the_parent_run_holds_the_results(tuned: Tuned) -> None:
    import mlflow

    tuning = tuned.tuning
    parent, _ = runs_of(tuning)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tuning.recipe.workspace}/mlflow.db")
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    pictures = {"landscape.png", "parallel_coordinates.png", "history.png", "importance.png"}
    assert names >= {*pictures, "trials.json", SUMMARY, BEST_RECIPE, "ranking.txt"}
    assert set(tuning.storage.files()) == {*pictures, "trials.jsonl", SUMMARY, BEST_RECIPE, "ranking.txt"}
    finished = [record.value for record in tuned.records.values() if record.state == "finished"]
    best = curve(tuning, parent.info.run_id, "best/value")
    assert [value for _, value in best] == sorted((value for _, value in best), reverse=True)
    assert best[-1][1] in finished
    summary = tuning.storage.read_json(SUMMARY)
    assert [row["label"] for row in summary["ranking"]] == sorted(
        (row["label"] for row in summary["ranking"]),
        key=lambda label: next(row["mean"] for row in summary["ranking"] if row["label"] == label),
    )
    assert {row["label"] for row in summary["ranking"]} >= {"half the rate"}
    assert summary["seeds"] == [2, 3]
    assert all(len(row["scores"]) == 2 for row in summary["ranking"])


def test_a_tuning_that_is_done_is_not_done_again(
    folder: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: tuned.output(record).files() for name, record in tuned.records.items()}
    options = ["--config", str(folder / "recipe.yaml"), "--tune", str(folder / "grid.yaml")]
    assert main([*options, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert f"{LR}  grid {GOOD} {DIVERGING} {GOOD / 2} {BAD}" in plan
    assert re.search(r"(2 finished, 1|1 finished, 2) ended early, 1 failed", plan)
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "Nothing to do: the tuning is finished." in printed
    assert "half the rate" in printed
    assert before == {name: tuned.output(record).files() for name, record in tuned.records.items()}
    assert not is_done(tuning_of([*options, "--tune.trials", "7"]))


def test_what_a_killed_driver_did_not_tell_mlflow_is_told_by_the_next(tuned: Tuned) -> None:
    import mlflow

    tuning = tuned.tuning
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tuning.recipe.workspace}/mlflow.db")
    _, runs = runs_of(tuning)
    client.set_terminated(runs["trial-000"].info.run_id, "FAILED")
    client.update_run(runs["trial-001"].info.run_id, status="RUNNING")
    client.delete_run(runs["trial-002"].info.run_id)
    files = {name: tuning.storage.read_bytes(name) for name in tuning.storage.files()}
    run_tuning(tuning)
    assert_runs_are_complete(tuning, tuned.records, output=tuned.output)
    # Nothing was trained, and the same results are the same files.
    assert {name: tuning.storage.read_bytes(name) for name in tuning.storage.files()} == files


@pytest.mark.tune
def test_the_best_recipe_reproduces_its_trial_and_is_tested_once(tuned: Tuned, tmp_path: Path, ray_local: Any) -> None:
    best = Path(tuned.tuning.storage.path(BEST_RECIPE))
    winner = tuned.tuning.storage.read_json(SUMMARY)["winner"]
    header = "".join(line for line in best.read_text().splitlines(keepends=True) if line.startswith("#"))
    for part in (winner["label"], tuned.tuning.fingerprint, str(winner["value"]), winner["fingerprint"], str(best)):
        assert part in header

    here = run(read(best))
    assert actions(here)["retrieval"] == "skipped"
    assert actions(here)["evaluation"] == "done"
    assert here["retrieval"].artifact.fingerprint == winner["fingerprint"]

    # Where nothing was made before it is trained anew, by Ray Train.
    there = run(read(best, "--workspace", str(tmp_path / "elsewhere")), until_stage="retrieval")
    trained = there["retrieval"].artifact
    assert there["retrieval"].action == "done"
    assert trained.fingerprint == winner["fingerprint"]
    assert trained.counts["best/score"] == here["retrieval"].artifact.counts["best/score"]
    ends = [point for point in points(trained.storage) if SCORE in point]
    chosen = max(ends, key=lambda point: (point[SCORE], point["step"]))
    assert chosen[tuned.tuning.config.metric] == pytest.approx(winner["value"], rel=1e-6)


SENTINEL = 123.0
"""A loss that no training reports."""


@pytest.mark.tune
def test_a_tuning_whose_driver_was_killed_goes_on(folder: Path, ray_local: Any) -> None:
    options = write_tuning(
        folder,
        "killed",
        space={KL: "grid 0.1 0.5 1 2"},
        trials=4,
        sampler={"name": "grid"},
        scheduler={"name": "none"},
        recipe={"model": {"game": {"teacher": "none"}}, "retrieval": {"epochs": 6}},
    )
    tuning = tuning_of(options)

    def one_is_done_and_one_has_begun() -> bool:
        records = Journal(tuning.storage).of("trial")
        began = any(record.state == "running" and len(record.reports) >= 2 for record in records)
        return began and any(record.state == "finished" for record in records)

    kill_when([sys.executable, "-m", "jobs.tune", *options], one_is_done_and_one_has_begun)
    before = {record.name: record for record in Journal(tuning.storage).of("trial")}
    assert not is_done(tuning)
    done = [record for record in before.values() if record.state == "finished"]
    begun = [record for record in before.values() if record.state == "running" and len(record.reports) >= 2]
    outputs = {name: tuning.graph.workspace.folder("retrieval", record.fingerprint) for name, record in before.items()}
    stamps = {record.name: Path(outputs[record.name].path(ARTIFACT)).stat().st_mtime_ns for record in done}
    # A step that was done again would replace this loss.
    for record in begun:
        text = outputs[record.name].read_bytes(HISTORY).decode().splitlines()
        text[0] = json.dumps({**json.loads(text[0]), "train/loss": SENTINEL})
        outputs[record.name].write_bytes(HISTORY, "".join(f"{line}\n" for line in text).encode())

    run_tuning(tuning)
    after = {record.name: record for record in Journal(tuning.storage).of("trial")}
    assert len(after) == 4
    assert {record.state for record in after.values()} == {"finished"}
    for record in done:
        assert after[record.name] == record
        assert Path(outputs[record.name].path(ARTIFACT)).stat().st_mtime_ns == stamps[record.name]
    for record in begun:
        assert after[record.name].reports[: len(record.reports)] == record.reports
        assert after[record.name].values == record.values
        assert points(outputs[record.name])[0]["train/loss"] == SENTINEL
    outputs = {name: tuning.graph.workspace.folder("retrieval", record.fingerprint) for name, record in after.items()}
    for name in after:
        steps = [int(point["step"]) for point in points(outputs[name]) if "train/loss" in point]
        assert steps == list(range(1, max(steps) + 1))
    assert is_done(tuning)
    parent, runs = runs_of(tuning)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name, output in outputs.items():
        logged = [step for step, _ in curve(tuning, runs[name].info.run_id, "train/loss")]
        assert logged == [int(point["step"]) for point in points(output) if "train/loss" in point], name


@pytest.mark.tune
def test_a_population_exchanges_weights_and_settings(folder: Path, ray_local: Any) -> None:
    options = write_tuning(
        folder,
        "population",
        space={KL: "loguniform 0.05 10"},
        trials=2,
        sampler={"name": "random"},
        scheduler={"name": "pbt", "quantile": 0.5},
        recipe={"model": {"game": {"teacher": "none"}}, "retrieval": {"epochs": 8}},
    )
    tuning = tuning_of(options)
    run_tuning(tuning)
    first, second = Journal(tuning.storage).of("trial")
    assert first.state == second.state == "finished"
    runs = runs_of(tuning)[1]
    one, other = (runs[record.name].info for record in (first, second))
    assert one.start_time < other.end_time and other.start_time < one.end_time, "two trials ran at once"
    records = {record.name: record for phase in ("trial", "final") for record in Journal(tuning.storage).of(phase)}
    assert runs.keys() == records.keys()
    drawn = {name: float(runs[name].data.params[KL]) for name in (first.name, second.name)}
    # Whoever was worse took over the other's weights, and its kl but for a factor.
    changed = [record for record in (first, second) if record.values[KL] != drawn[record.name]]
    assert changed
    assert all(0.05 <= record.values[KL] <= 10 for record in (first, second))
    assert set(tuning.storage.folders(POPULATION)) == {first.name, second.name}
    # What is ranked is trained from the start with the settings that the best ended with.
    (final,) = Journal(tuning.storage).of("final")
    assert final.values in (first.values, second.values)
    assert final.state == "finished"
    recipe: Recipe = read(Path(tuning.storage.path(BEST_RECIPE)))
    assert make_graph(recipe).fingerprints["retrieval"] == final.fingerprint
    assert make_graph(recipe).artifact("retrieval") is not None


@pytest.mark.tune
def test_stages_between_trials_run_once_per_value_on_the_cpus_of_trials_that_ended(folder: Path) -> None:
    """With one CPU, the frames of the second trial can only be made when the first holds nothing any more."""
    options = write_tuning(
        folder,
        "one-cpu",
        space={QUALITY: "grid 91 51"},
        trials=2,
        sampler={"name": "grid"},
        scheduler={"name": "none"},
        recipe={
            "model": {"game": {"teacher": "none"}},
            "retrieval": {"epochs": 1},
            "resources": {"local_cpus": 1, "decode": {"max_tasks": None, "cpus_per_task": 1}},
        },
    )
    done = run_command([sys.executable, "-m", "jobs.tune", *options], timeout_s=400)
    assert done.returncode == 0, done.stderr[-5000:]
    tuning = tuning_of(options)
    assert [record.state for record in Journal(tuning.storage).of("trial")] == ["finished", "finished"]
    assert stages_of(tuning).count("frames") == 2


@pytest.mark.tune
def test_trials_with_two_workers_are_ended_early_too(folder: Path) -> None:
    """Each trial is a worker group; that of one that was ended gives its CPUs to the next."""
    options = write_tuning(
        folder,
        "workers",
        # Others than those of the tunings before: what is trained is not trained again.
        space={LR: f"grid {GOOD / 3} {BAD / 3}"},
        trials=2,
        sampler={"name": "grid"},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
        recipe={"model": {"game": {"teacher": "none"}}, "resources": {"retrieval": {"workers": 2}}},
    )
    # A Ray of its own, with two CPUs: one group at a time.
    done = run_command([sys.executable, "-m", "jobs.tune", *options], timeout_s=400)
    assert done.returncode == 0, done.stderr[-5000:]
    tuning = tuning_of(options)
    good, bad = Journal(tuning.storage).of("trial")
    assert (good.state, bad.state) == ("finished", "stopped")
    (final,) = Journal(tuning.storage).of("final")
    assert final.state == "finished"
    records = {record.name: record for record in (good, bad, final)}
    assert_runs_are_complete(
        tuning, records, output=lambda record: tuning.graph.workspace.folder("retrieval", record.fingerprint)
    )
