"""Trainings on two workers that are killed, whole or one of the workers, and started again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.graph import make_graph
from tests.faults.finished_run import (
    CHECKPOINT_EVERY,
    FinishedRun,
    assert_same_weights,
    done_twice,
    kept_step,
    paces,
)
from tests.jobs.killing import has_checkpoint, kill, wait_until, wait_until_gone, workers_at
from tests.jobs.recipes import run

pytestmark = [pytest.mark.fault, pytest.mark.slow_fault, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("training", ["estimator", "retrieval", "video_qa"])
def test_a_training_whose_driver_is_killed_goes_on_from_its_last_checkpoint(
    training: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole: FinishedRun = request.getfixturevalue("questions_alone" if training == "video_qa" else "full_run")
    recipe = whole.until_before(training, tmp_path)
    output = make_graph(recipe).output(training)
    whole.kill(
        recipe,
        training,
        lambda: has_checkpoint(output) and len(paces(recipe, training)) > CHECKPOINT_EVERY,
    )
    before, kept = paces(recipe, training), kept_step(recipe, training)
    assert kept > 0

    outcomes = run(recipe, until_stage=training)
    counts = outcomes[training].artifact.counts
    assert outcomes[training].step.state == "partial"
    assert max(before) < counts["steps"], "the driver was killed in the middle"
    again = done_twice(before, paces(recipe, training))
    assert len(again) <= CHECKPOINT_EVERY
    assert all(step > kept for step in again), "it went on from the checkpoint that was there"
    assert_same_weights(recipe, whole.recipe, training)
    uninterrupted = make_graph(whole.recipe).artifact(training)
    assert uninterrupted is not None
    assert counts["steps"] == uninterrupted.counts["steps"]


def test_a_training_worker_that_is_killed_costs_the_steps_since_the_last_checkpoint(
    full_run: FinishedRun, tmp_path: Path
) -> None:
    recipe = full_run.until_before("retrieval", tmp_path)
    output = make_graph(recipe).output("retrieval")
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(run, recipe, until_stage="retrieval")
        wait_until(
            lambda: has_checkpoint(output) and len(paces(recipe, "retrieval")) > CHECKPOINT_EVERY,
            alive=lambda: not running.done(),
        )
        workers = workers_at("RayTrainWorker")
        kill(min(workers))
        before, kept = paces(recipe, "retrieval"), kept_step(recipe, "retrieval")
        outcomes = running.result(timeout=300)
    assert len(workers) == 2
    assert not wait_until_gone(workers, timeout_s=10), "the other one does not wait for it for ever"
    assert max(before) < outcomes["retrieval"].artifact.counts["steps"]
    again = done_twice(before, paces(recipe, "retrieval"))
    assert all(step > kept for step in again)
    assert len(again) <= CHECKPOINT_EVERY
    assert_same_weights(recipe, full_run.recipe, "retrieval")
