"""What a trial does in its own process: the searched stage of its recipe, and reports to Ray Tune.

A trial is an ordinary run of an ordinary stage. Its artifact lies where ``jobs.run`` looks for it, an
interrupted one goes on from the stage's own checkpoints, and its curves are the stage's history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.tracker import StageTracker
from pipelines.train.files import CHECKPOINTS, RAY_TRAIN, SCORE
from pipelines.train.history import History, Point
from pipelines.train.trial_host import TrialHost
from pipelines.tune.journal import Report
from pipelines.tune.search import MakeRecipe, Search
from pipelines.tune.space import with_values
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

PROGRESS, VALUE = "progress", "value"
"""What a scheduler reads in a report: its clock, and the metric."""

HOPELESS = (ArithmeticError, ValueError, FileNotFoundError)
"""What would happen again: such a trial has failed. After anything else Tune tries it again."""


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search have in common."""

    document: Mapping[str, Any]
    """The recipe."""
    make_recipe: MakeRecipe
    stage: str
    metric: str
    reports_per_epoch: int

    @classmethod
    def of(cls, search: Search) -> TrialJob:
        """The job of the trials of ``search``."""
        config = search.config
        return cls(
            plain(search.recipe), search.make_recipe, config.stage, config.metric, config.scheduler.reports_per_epoch
        )

    def recipe(self, config: Mapping[str, Any]) -> Recipe:
        """The recipe of the trial that Tune configures with ``config``."""
        return self.make_recipe(with_values(self.document, {**config["values"], "seed": config["seed"]}))

    def total_reports(self, recipe: Recipe) -> int:
        """Validations of a whole training."""
        return int(getattr(recipe, self.stage).epochs) * self.reports_per_epoch

    def report_of(self, step: int, metrics: Mapping[str, float]) -> Report:
        """The report of a point that holds the metric."""
        epoch = metrics["epoch"]
        progress = math.floor(epoch * self.reports_per_epoch + 1e-6)
        return Report(progress=progress, epoch=epoch, step=step, value=metrics[self.metric])


class TuneTracker(StageTracker):
    """Tells Tune of every validation but the last, which is told when the stage is committed."""

    def __init__(self, job: TrialJob, total_reports: int) -> None:
        self._job, self._total = job, total_reports

    def log_batch(self, points: Sequence[Point]) -> None:
        for step, metrics in points:
            if self._job.metric in metrics:
                report = self._job.report_of(step, metrics)
                if report.progress < self._total:
                    self.tell(report)

    def tell(self, report: Report) -> None:
        """Reports; where Tune ends the trial, this call does not return."""
        tune.report({**plain(report), "state": "running"})


def run_trial(config: Mapping[str, Any], *, job: TrialJob) -> None:
    """The function that Tune runs: trains the recipe with ``values`` and ``seed`` of ``config``."""
    try:
        recipe = job.recipe(config)
        total = job.total_reports(recipe)
        graph = make_graph(recipe)
        graph.execute(
            graph.plan(until_stage=job.stage)[-1],
            tracker=TuneTracker(job, total),
            config=recipe,
            trial=TrialHost(validations_per_epoch=job.reports_per_epoch),
        )
        output = graph.output(job.stage)
        chosen = chosen_report(job, output)
    except HOPELESS as error:
        tell_failure(error)
        return
    # Nobody goes on with a training that is committed, and its checkpoints are several times its model.
    for folder in (CHECKPOINTS, RAY_TRAIN):
        output.delete(folder)
    tune.report({**plain(chosen), "progress": total, "state": "finished"})


def tell_failure(error: Exception) -> None:
    """Reports that trying again would not help; a scheduler passes over the value."""
    nothing = Report(progress=0, epoch=0.0, step=0, value=math.nan)
    tune.report({**plain(nothing), "state": "failed", "reason": f"{type(error).__name__}: {error}"})


def chosen_report(job: TrialJob, output: Storage) -> Report:
    """The validation of the checkpoint that the stage chose: the best by score, of equal ones the last.

    Raises:
        ValueError: the history does not hold the metric.
    """
    ends = [(step, metrics) for step, metrics in History(output).points if metrics.get("epoch", 0.5) % 1 == 0]
    scored = [(metrics[SCORE], step, metrics) for step, metrics in ends if job.metric in metrics]
    if not scored:
        raise ValueError(
            f"the history of {output.uri} does not hold {job.metric}: there is nothing to validate with, or the "
            "training was killed before it could write it down; remove the folder to train again"
        )
    _, step, metrics = max(scored, key=lambda point: point[:2])
    return job.report_of(step, metrics)
