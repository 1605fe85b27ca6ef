"""Searches as a user runs them: concurrent trials, failures, an interruption, and what they end in."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import read_recipe, recipe_from_document, recipe_parser
from jobs.tune import main
from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.recipe.recipe import Recipe
from pipelines.train.files import HISTORY, SCORE
from pipelines.tune.checks import make_search
from pipelines.tune.configs import SearchConfig
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.plan import BEST_RECIPE, SUMMARY, is_done
from pipelines.tune.population import POPULATION
from pipelines.tune.run import run_search
from pipelines.tune.search import Search
from pipelines.workspace.artifact import ARTIFACT
from pipelines.workspace.storage import Storage
from tests.jobs.killing import kill_when
from tests.jobs.recipes import actions, read, run, run_command, write_recipe

pytestmark = pytest.mark.slow

LR, QUALITY, KL = "retrieval.optimizer.lr", "frames.jpeg_quality", "model.loss.kl"
GOOD, BAD, DIVERGING = 3e-3, 1e-9, 1e30
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over generated clips, and the workspace of all searches below."""
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
        resources={"local_cpus": 2, "local_object_store_gb": 0.15, "evaluation": {"max_actors": 1}},
        tracking={"every_steps": 1, "log_model": False},
    )
    return folder


def write_search(folder: Path, name: str, **settings: Any) -> list[str]:
    """Writes a search file; returns the options of a command that runs it."""
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
    return ["--config", str(folder / "recipe.yaml"), "--search", str(path)]


def read_search(options: Sequence[str]) -> Search:
    parser = recipe_parser("A test.")
    parser.add_class_arguments(SearchConfig, "search")
    recipe, values = read_recipe(parser, options)
    return make_search(recipe, values["search"], recipe_from_document)


@dataclass(frozen=True)
class Searched:
    """A search that was run to its end."""

    search: Search

    @property
    def records(self) -> dict[str, TrialRecord]:
        journal = Journal(self.search.storage)
        return {record.name: record for phase in ("search", "final") for record in journal.of(phase)}  # type: ignore[arg-type]

    def output(self, record: TrialRecord) -> Storage:
        return self.search.graph.workspace.folder("retrieval", record.fingerprint)


@pytest.fixture(scope="module")
def searched(folder: Path, ray_local: Any) -> Searched:
    """A grid of six trials, two at a time: of the three rates one is good, one learns nothing, one diverges."""
    options = write_search(
        folder,
        "grid",
        space={QUALITY: "grid 90 50", LR: f"grid {GOOD} {BAD} {DIVERGING}"},
        trials=6,
        seeds=2,
        sampler={"name": "grid"},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2, "reports_per_epoch": 2},
        concurrent_trials=2,
        baselines={"half the rate": {LR: GOOD / 2}},
    )
    search = read_search(options)
    run_search(search)
    return Searched(search)


def points(storage: Storage) -> list[dict[str, float]]:
    return [json.loads(line) for line in storage.read_bytes(HISTORY).splitlines()]


def test_every_setting_is_tried_and_bad_ones_are_ended_early(searched: Searched) -> None:
    trials = [record for record in searched.records.values() if record.phase == "search"]
    assert [(record.values[QUALITY], record.values[LR]) for record in trials] == [
        (quality, rate) for quality in (90, 50) for rate in (GOOD, BAD, DIVERGING)
    ]
    states = {rate: {record.state for record in trials if record.values[LR] == rate} for rate in (GOOD, BAD)}
    assert states[GOOD] == {"finished"}
    assert "stopped" in states[BAD]
    for record in trials:
        if record.state == "stopped":
            assert record.reason == "asha: below the best 1/2 of those that came as far"
            # At the first rung, epoch 1, or at the second, epoch 2.
            assert record.reports[-1].progress in (2, 4)
            assert [report.progress for report in record.reports] == list(range(1, record.reports[-1].progress + 1))
        if record.state == "finished":
            assert [report.progress for report in record.reports] == list(range(1, 2 * EPOCHS + 1))


def test_a_trial_that_raises_costs_itself(searched: Searched) -> None:
    failed = [record for record in searched.records.values() if record.values.get(LR) == DIVERGING]
    assert len(failed) == 2
    for record in failed:
        assert (record.state, record.value) == ("failed", None)
        assert record.reason.startswith("NonFiniteLossError: the loss is")
        assert not searched.output(record).exists(ARTIFACT)


def test_a_stage_that_the_search_touches_runs_once_per_value_and_the_others_once(searched: Searched) -> None:
    workspace = searched.search.graph.workspace
    parent, _ = runs_of(searched.search)
    runs = [run for run in all_runs(searched.search) if "stage" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    stages = [run.data.tags["stage"] for run in runs]
    assert sorted(stages) == ["frames", "frames", "manifest", "shapes"]
    assert {len(workspace.folders(name)) for name in ("shapes", "manifest")} == {1}
    assert len(workspace.folders("frames")) == 2


def all_runs(search: Search) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{search.recipe.workspace}/mlflow.db")
    experiment = client.get_experiment_by_name("hbi")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def runs_of(search: Search) -> tuple[Any, dict[str, Any]]:
    """The parent run of a search, and its nested runs by the name of the trial."""
    runs = all_runs(search)
    (parent,) = (run for run in runs if run.data.tags.get("search") == search.fingerprint)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    trials = {run.data.tags["trial"]: run for run in children if "trial" in run.data.tags}
    assert len(trials) == sum("trial" in run.data.tags for run in children), "a trial has one run"
    return parent, trials


def curve(search: Search, run_id: str, name: str) -> list[tuple[int, float]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{search.recipe.workspace}/mlflow.db")
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def assert_runs_are_complete(search: Search, records: Mapping[str, TrialRecord], *, output: Any) -> None:
    """Every trial has a nested run with its settings, every point of its history once, and why it ended."""
    parent, runs = runs_of(search)
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
        for metric in ("train/loss", "epoch", SCORE, search.config.metric):
            expected = {int(point["step"]): point[metric] for point in written if metric in point}
            found = curve(search, run.info.run_id, metric)
            assert found == sorted(expected.items()), f"{metric} of {name}"
        assert record.state == "failed" or len(written) > 5
        assert Storage(run.data.tags["checkpoint"]).exists("") == (record.state != "failed")


def test_nested_runs_are_complete_although_trials_ran_side_by_side(searched: Searched) -> None:
    assert_runs_are_complete(searched.search, searched.records, output=searched.output)
    began = {name: (run.info.start_time, run.info.end_time) for name, run in runs_of(searched.search)[1].items()}
    first, second = began["trial-000"], began["trial-001"]
    assert first[0] < second[1] and second[0] < first[1], "two trials ran at once"


def test_a_finished_trial_is_an_artifact_without_its_optimizer(searched: Searched) -> None:
    for record in searched.records.values():
        if record.state == "finished":
            output = searched.output(record)
            assert {ARTIFACT, HISTORY} == set(output.files())
            assert output.folders() == [MODEL]
            ends = [point for point in points(output) if point.get("epoch", 0.5) % 1 == 0 and SCORE in point]
            assert len(ends) == EPOCHS
            chosen = max(ends, key=lambda point: (point[SCORE], point["step"]))
            assert record.value == chosen[searched.search.config.metric]


def test_the_parent_run_holds_the_results(searched: Searched) -> None:
    import mlflow

    search = searched.search
    parent, _ = runs_of(search)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{search.recipe.workspace}/mlflow.db")
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    pictures = {"landscape.png", "parallel_coordinates.png", "history.png", "importance.png"}
    assert names >= {*pictures, "trials.json", SUMMARY, BEST_RECIPE, "ranking.txt"}
    assert set(search.storage.files()) == {*pictures, "trials.jsonl", SUMMARY, BEST_RECIPE, "ranking.txt"}
    finished = [record.value for record in searched.records.values() if record.state == "finished"]
    best = curve(search, parent.info.run_id, "best/value")
    assert [value for _, value in best] == sorted((value for _, value in best), reverse=True)
    assert best[-1][1] in finished
    summary = search.storage.read_json(SUMMARY)
    assert [row["label"] for row in summary["ranking"]] == sorted(
        (row["label"] for row in summary["ranking"]),
        key=lambda label: next(row["mean"] for row in summary["ranking"] if row["label"] == label),
    )
    assert {row["label"] for row in summary["ranking"]} >= {"half the rate"}
    assert summary["seeds"] == [2, 3]
    assert all(len(row["scores"]) == 2 for row in summary["ranking"])


def test_a_search_that_is_done_is_not_done_again(
    folder: Path, searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: searched.output(record).files() for name, record in searched.records.items()}
    options = ["--config", str(folder / "recipe.yaml"), "--search", str(folder / "grid.yaml")]
    assert main([*options, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert f"{LR}  grid {GOOD} {BAD} {DIVERGING}" in plan.replace("0.003 1e-09 1e+30", f"{GOOD} {BAD} {DIVERGING}")
    assert "2 failed" in plan
    assert "frames, retrieval" in plan
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "Nothing to do: the search is finished." in printed
    assert "half the rate" in printed
    assert before == {name: searched.output(record).files() for name, record in searched.records.items()}
    assert not is_done(read_search([*options, "--search.trials", "7"]))


def test_what_a_killed_driver_did_not_tell_mlflow_is_told_by_the_next(searched: Searched) -> None:
    import mlflow

    search = searched.search
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{search.recipe.workspace}/mlflow.db")
    _, runs = runs_of(search)
    client.set_terminated(runs["trial-000"].info.run_id, "FAILED")
    client.update_run(runs["trial-001"].info.run_id, status="RUNNING")
    client.delete_run(runs["trial-002"].info.run_id)
    files = {name: search.storage.read_bytes(name) for name in search.storage.files()}
    run_search(search)
    assert_runs_are_complete(search, searched.records, output=searched.output)
    # Nothing was trained, and the same results are the same files.
    assert {name: search.storage.read_bytes(name) for name in search.storage.files()} == files


@pytest.mark.search
def test_the_best_recipe_reproduces_its_trial_and_is_tested_once(
    searched: Searched, tmp_path: Path, ray_local: Any
) -> None:
    best = Path(searched.search.storage.path(BEST_RECIPE))
    winner = searched.search.storage.read_json(SUMMARY)["winner"]
    header = "".join(line for line in best.read_text().splitlines(keepends=True) if line.startswith("#"))
    for part in (winner["label"], searched.search.fingerprint, str(winner["value"]), winner["fingerprint"], str(best)):
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
    assert chosen[searched.search.config.metric] == pytest.approx(winner["value"], rel=1e-6)


SENTINEL = 123.0
"""A loss that no training reports."""


def test_a_search_whose_driver_was_killed_goes_on(folder: Path, ray_local: Any) -> None:
    options = write_search(
        folder,
        "killed",
        space={KL: "grid 0.1 0.5 1 2"},
        trials=4,
        sampler={"name": "grid"},
        scheduler={"name": "none"},
        recipe={"model": {"game": {"teacher": "none"}}, "retrieval": {"epochs": 6}},
    )
    search = read_search(options)

    def one_is_done_and_one_has_begun() -> bool:
        records = Journal(search.storage).of("search")
        began = any(record.state == "running" and len(record.reports) >= 2 for record in records)
        return began and any(record.state == "finished" for record in records)

    kill_when([sys.executable, "-m", "jobs.tune", *options], one_is_done_and_one_has_begun)
    before = {record.name: record for record in Journal(search.storage).of("search")}
    assert not is_done(search)
    done = [record for record in before.values() if record.state == "finished"]
    begun = [record for record in before.values() if record.state == "running" and len(record.reports) >= 2]
    outputs = {name: search.graph.workspace.folder("retrieval", record.fingerprint) for name, record in before.items()}
    stamps = {record.name: Path(outputs[record.name].path(ARTIFACT)).stat().st_mtime_ns for record in done}
    # A step that was done again would replace this loss.
    for record in begun:
        text = outputs[record.name].read_bytes(HISTORY).decode().splitlines()
        text[0] = json.dumps({**json.loads(text[0]), "train/loss": SENTINEL})
        outputs[record.name].write_bytes(HISTORY, "".join(f"{line}\n" for line in text).encode())

    run_search(search)
    after = {record.name: record for record in Journal(search.storage).of("search")}
    assert len(after) == 4
    assert {record.state for record in after.values()} == {"finished"}
    for record in done:
        assert after[record.name] == record
        assert Path(outputs[record.name].path(ARTIFACT)).stat().st_mtime_ns == stamps[record.name]
    for record in begun:
        assert after[record.name].reports[: len(record.reports)] == record.reports
        assert after[record.name].values == record.values
        assert points(outputs[record.name])[0]["train/loss"] == SENTINEL
    outputs = {name: search.graph.workspace.folder("retrieval", record.fingerprint) for name, record in after.items()}
    for name in after:
        steps = [int(point["step"]) for point in points(outputs[name]) if "train/loss" in point]
        assert steps == list(range(1, max(steps) + 1))
    assert is_done(search)
    parent, runs = runs_of(search)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name, output in outputs.items():
        logged = [step for step, _ in curve(search, runs[name].info.run_id, "train/loss")]
        assert logged == [int(point["step"]) for point in points(output) if "train/loss" in point], name


@pytest.mark.search
def test_a_population_exchanges_weights_and_settings(folder: Path, ray_local: Any) -> None:
    options = write_search(
        folder,
        "population",
        space={KL: "loguniform 0.05 10"},
        trials=2,
        sampler={"name": "random"},
        scheduler={"name": "pbt", "quantile": 0.5},
        recipe={"model": {"game": {"teacher": "none"}}, "retrieval": {"epochs": 8}},
    )
    search = read_search(options)
    run_search(search)
    first, second = Journal(search.storage).of("search")
    assert first.state == second.state == "finished"
    runs = runs_of(search)[1]
    drawn = {name: float(runs[name].data.params[KL]) for name in (first.name, second.name)}
    # Whoever was worse took over the other's weights, and its kl but for a factor.
    changed = [record for record in (first, second) if record.values[KL] != drawn[record.name]]
    assert changed
    assert all(0.05 <= record.values[KL] <= 10 for record in (first, second))
    assert set(search.storage.folders(POPULATION)) == {first.name, second.name}
    # What is ranked is trained from the start with the settings that the best ended with.
    (final,) = Journal(search.storage).of("final")
    assert final.values in (first.values, second.values)
    assert final.state == "finished"
    recipe: Recipe = read(Path(search.storage.path(BEST_RECIPE)))
    assert make_graph(recipe).fingerprints["retrieval"] == final.fingerprint
    assert make_graph(recipe).artifact("retrieval") is not None


@pytest.mark.search
def test_stages_between_trials_get_the_cpus_of_trials_that_ended(folder: Path) -> None:
    """With one CPU, the frames of the second trial can only be made when the first holds nothing any more."""
    options = write_search(
        folder,
        "one-cpu",
        space={QUALITY: "grid 91 51"},
        trials=2,
        sampler={"name": "grid"},
        scheduler={"name": "none"},
        recipe={
            "model": {"game": {"teacher": "none"}},
            "retrieval": {"epochs": 1},
            "resources": {"local_cpus": 1, "decode": {"cpus_per_task": 1}},
        },
    )
    done = run_command([sys.executable, "-m", "jobs.tune", *options], timeout_s=400)
    assert done.returncode == 0, done.stderr[-5000:]
    records = Journal(read_search(options).storage).of("search")
    assert [record.state for record in records] == ["finished", "finished"]


@pytest.mark.search
def test_trials_with_two_workers_are_ended_early_too(folder: Path) -> None:
    """Each trial is a worker group; that of one that was ended gives its CPUs to the next."""
    options = write_search(
        folder,
        "workers",
        # Others than those of the searches before: what is trained is not trained again.
        space={LR: f"grid {GOOD / 3} {BAD / 3}"},
        trials=2,
        sampler={"name": "grid"},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
        recipe={"model": {"game": {"teacher": "none"}}, "resources": {"retrieval": {"workers": 2}}},
    )
    # A Ray of its own, with two CPUs: one group at a time.
    done = run_command([sys.executable, "-m", "jobs.tune", *options], timeout_s=400)
    assert done.returncode == 0, done.stderr[-5000:]
    search = read_search(options)
    good, bad = Journal(search.storage).of("search")
    assert (good.state, bad.state) == ("finished", "stopped")
    (final,) = Journal(search.storage).of("final")
    assert final.state == "finished"
    records = {record.name: record for record in (good, bad, final)}
    assert_runs_are_complete(
        search, records, output=lambda record: search.graph.workspace.folder("retrieval", record.fingerprint)
    )
