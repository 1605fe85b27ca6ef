"""A training in the process of the run itself that is killed on the way, and run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.stages.execution import Outcome
from pipelines.train.files import HISTORY
from pipelines.train.history import History
from pipelines.workspace.storage import Storage
from tests.faults.finished_run import assert_same_weights, paces
from tests.jobs.killing import has_checkpoint, kill_when
from tests.jobs.recipes import command, read, run, write_recipe

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault]

EPOCHS, CHECKPOINT_EVERY = 12, 3
OPTIONS = ("--model.game.teacher", "exact")


@dataclass(frozen=True)
class Continued:
    """A training that was killed, and has gone on to its end."""

    recipe: Recipe
    paces: Mapping[int, float]
    """Of the steps that the killed run told of."""
    outcome: Outcome


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    shapes = {"train_videos": 24, "test_videos": 4, "captions_per_video": 2, "image_size_px": 32, "duration_s": 2.0}
    path = write_recipe(
        tmp_path_factory.mktemp("killed"),
        data={"validation_videos": 6, "shapes": shapes},
        retrieval={
            "epochs": EPOCHS,
            "batch_size": 8,
            "checkpoint": {"every_steps": CHECKPOINT_EVERY},
            "optimizer": {"lr": 1e-3, "clip_lr_factor": 1.0},
        },
    )
    return read(path, *OPTIONS)


@pytest.fixture(scope="module")
def continued(recipe: Recipe) -> Continued:
    output = make_graph(recipe).output("retrieval")
    file = Path(recipe.workspace).parent / "recipe.yaml"
    kill_when(command(file, *OPTIONS, "--until_stage", "retrieval"), lambda: has_checkpoint(output))
    told = paces(recipe, "retrieval")
    return Continued(recipe, told, run(recipe, until_stage="retrieval")["retrieval"])


def losses(output: Storage) -> dict[int, float]:
    """The training loss of each step that the history holds."""
    points = map(json.loads, output.read_bytes(HISTORY).splitlines())
    return {point["step"]: point["train/loss"] for point in points if "train/loss" in point}


def test_a_training_in_place_goes_on_from_its_last_checkpoint(continued: Continued) -> None:
    step = continued.outcome.step
    assert (step.state, step.reason) == ("partial", f"stopped at step {max(continued.paces):,}")
    # How fast a step was is a figure that no second run of it gives again.
    first, pace = min(continued.paces), "throughput/pairs_per_s"
    assert dict(History(continued.outcome.artifact.storage).points)[first][pace] == continued.paces[first]


def test_the_curve_of_a_killed_training_has_every_step_once(continued: Continued) -> None:
    import mlflow

    artifact = continued.outcome.artifact
    steps = list(range(1, int(artifact.counts["steps"]) + 1))
    assert max(continued.paces) < len(steps), "it was killed on the way"
    found = losses(artifact.storage)
    assert list(found) == steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{continued.recipe.workspace}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    latest, *_ = client.search_runs(experiments, "tags.stage = 'retrieval'", order_by=["attributes.start_time DESC"])
    points = client.get_metric_history(latest.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == list(found.items())


def test_a_killed_training_in_place_ends_as_an_uninterrupted_one(continued: Continued, tmp_path: Path) -> None:
    undisturbed = replace(continued.recipe, workspace=str(tmp_path / "workspace"))
    expected = run(undisturbed, until_stage="retrieval")["retrieval"].artifact
    # The same operations in another process, whose kernels may depend on the alignment of memory.
    assert losses(continued.outcome.artifact.storage) == pytest.approx(losses(expected.storage), rel=1e-4)
    assert_same_weights(continued.recipe, undisturbed, "retrieval")
