"""A tuning that goes on after an interruption ends the trials early that it would have ended without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.ray_tune import PROGRESS, VALUE, Halving
from tests.pipelines.tune.tunings import KL, record_of, tuning_of

CONTINUE = TrialScheduler.CONTINUE


def decisions(scheduler: Halving, records: list[TrialRecord], *, after: int = 0) -> list[str]:
    """What becomes of trials side by side at each validation, those up to ``after`` left out."""
    # As Tune hands them to a scheduler, under ids of Tune's own.
    trials = [
        Trial("train", stub=True, config={"name": record.name, "values": {}, "seed": record.seed}) for record in records
    ]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return [
        scheduler.on_trial_result(None, trial, {PROGRESS: report.progress, VALUE: report.value})
        for reports in list(zip(*(record.reports for record in records), strict=True))[after:]
        for trial, report in zip(trials, reports, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seen", range(7))
def test_a_trial_that_is_resumed_counts_once_in_a_rung_with_the_score_that_it_came_there_with(
    tmp_path: Path, seen: int
) -> None:
    # Rungs are at epochs 1, 2, 4 and 8.
    tuning = tuning_of(
        tmp_path,
        {"retrieval.epochs": 9},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
    )
    scores = {0: [3.0, 8.0, 8.8, 9.0, 9.1, 9.2, 9.3], 1: [4.0, 8.5, 8.6, 9.5, 9.6, 9.7, 9.8]}
    begun = [record_of(number, {KL: 1.0}, values, state="running") for number, values in scores.items()]
    # At each rung between the scores with which the two came there, and below what both came to later.
    third = record_of(2, {KL: 3.0}, [3.8, 8.4])

    journal = Journal(tuning.storage)
    uninterrupted = Halving(tuning, journal)
    assert decisions(uninterrupted, begun) == [CONTINUE] * 14
    for number, values in scores.items():
        journal.put(record_of(number, {KL: 1.0}, values[:seen], state="running"))
    resumed = Halving(tuning, Journal(tuning.storage))
    assert decisions(resumed, begun, after=seen) == [CONTINUE] * 2 * (7 - seen)
    assert decisions(resumed, [third]) == decisions(uninterrupted, [third]) == [CONTINUE] * 2
