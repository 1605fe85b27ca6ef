"""What a trial does in its own process: an ordinary run of an ordinary stage that reports to Ray Tune.

Its artifact lies where ``jobs.run`` looks for it, an interrupted trial resumes from the stage's own checkpoints, and
its curves are the stage's history. The result of a trial of population-based training was made with several settings,
so it is not the artifact of a stage and lies in the folder of the tuning. The last settings of the best trials go into
the final ranking, where each is trained from the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from pipelines.graph import make_graph
from pipelines.recipe.fields import with_values
from pipelines.recipe.recipe import Recipe
from pipelines.stages.execution import execute_step
from pipelines.stages.stage import StageContext
from pipelines.tracker import StageTracker
from pipelines.train.checkpoint_folder import CheckpointFolder
from pipelines.train.files import CHECKPOINTS, RAY_TRAIN, SCORE
from pipelines.train.history import History, Point
from pipelines.train.trial_host import TrialHost
from pipelines.tune.journal import HOPELESS, Report, TrialRecord
from pipelines.tune.tuning import MakeRecipe, Tuning, half_of
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage


def configuration(record: TrialRecord) -> dict[str, Any]:
    """The configuration that Tune passes to the function of a trial."""
    return {"name": record.name, "values": dict(record.values), "seed": record.seed, "phase": record.phase}


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a tuning have in common."""

    document: Mapping[str, Any]
    """The recipe."""
    make_recipe: MakeRecipe
    stage: str
    metric: str
    reports_per_epoch: int

    @classmethod
    def of(cls, tuning: Tuning) -> TrialJob:
        """The job of the trials of ``tuning``."""
        config = tuning.config
        return cls(
            plain(tuning.recipe), tuning.make_recipe, config.stage, config.metric, config.scheduler.reports_per_epoch
        )

    def recipe(self, config: Mapping[str, Any]) -> Recipe:
        """The recipe of the trial that Tune configures with ``config``."""
        # Members of a population are trials, and are given no phase.
        half = half_of(self.stage, config.get("phase", "trial"))
        return self.make_recipe(with_values(self.document, {**config["values"], **half, "seed": config["seed"]}))

    def total_reports(self, recipe: Recipe) -> int:
        """Validations of a whole training."""
        return int(getattr(recipe, self.stage).epochs) * self.reports_per_epoch

    def report_of(self, step: int, metrics: Mapping[str, float]) -> Report:
        """The report of a point that holds the metric."""
        epoch = metrics["epoch"]
        # A validation comes at the first step at or after its part of an epoch. The summand is for rounding errors.
        progress = math.floor(epoch * self.reports_per_epoch + 1e-6)
        return Report(progress=progress, epoch=epoch, step=step, value=metrics[self.metric])


class TuneTracker(StageTracker):
    """Reports every validation to Tune except the last, which is reported when the stage is committed."""

    def __init__(self, job: TrialJob, total_reports: int) -> None:
        self._job, self._total = job, total_reports

    def log_batch(self, points: Sequence[Point]) -> None:
        for step, metrics in points:
            if self._job.metric in metrics:
                report = self._job.report_of(step, metrics)
                # ASHA ends the longest trials at their last report (max_t); by then their stage must be committed.
                if report.progress < self._total:
                    self.tell(report)

    def tell(self, report: Report) -> None:
        """Reports to Tune; if Tune ends the trial, this call does not return."""
        tune.report({**plain(report), "state": "running"})


def run_trial(config: Mapping[str, Any], *, job: TrialJob) -> None:
    """The function that Tune runs: trains the recipe with ``values`` and ``seed`` of ``config``."""
    try:
        recipe = job.recipe(config)
        total = job.total_reports(recipe)
        graph = make_graph(recipe)
        execute_step(
            graph,
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
    # A committed training is never resumed, and its checkpoints are several times as large as its model.
    for folder in (CHECKPOINTS, RAY_TRAIN):
        output.delete(folder)
    # Its value may be that of an earlier validation, but TrialRecord.reported drops reports that are not before it.
    tune.report({**plain(chosen), "progress": total, "state": "finished"})


def tell_failure(error: Exception) -> None:
    """Reports an error that a repetition would not solve; schedulers ignore the value."""
    nothing = Report(progress=0, epoch=0.0, step=0, value=math.nan)
    tune.report({**plain(nothing), "state": "failed", "reason": f"{type(error).__name__}: {error}"})


def chosen_report(job: TrialJob, output: Storage) -> Report:
    """The validation of the checkpoint that the stage chose: the best by score, of equal ones the last.

    Raises:
        ValueError: the history does not hold the metric.
    """
    # Checkpoints within an epoch have no score, so the chosen one is from the end of an epoch.
    ends = [(step, metrics) for step, metrics in History(output).points if metrics.get("epoch", 0.5) % 1 == 0]
    scored = [(metrics[SCORE], step, metrics) for step, metrics in ends if job.metric in metrics]
    if not scored:
        raise ValueError(
            f"the history of {output.uri} does not hold {job.metric}: there is nothing to validate with, or the "
            "training was killed before it could write it down; remove the folder to train again"
        )
    # Without the metrics, which cannot be compared.
    _, step, metrics = max(scored, key=lambda point: point[:2])
    return job.report_of(step, metrics)


class _SharedCheckpoints(CheckpointFolder):
    """Checkpoints that Tune may give to another trial, or replace with those of another trial."""

    reported: Path
    """The checkpoint that the next report goes with."""

    def latest(self, scratch: Path) -> Path | None:
        # Tune has none at the first start, nor when a new driver goes on with the population.
        if (given := tune.get_checkpoint()) is None:
            return super().latest(scratch)
        folder = Path(given.to_directory(str(scratch)))
        # At once: the journal has the settings that came with them already, and a new driver finds no others here.
        super().keep(folder, -math.inf)
        return folder

    def keep(self, folder: Path, score: float) -> None:
        super().keep(folder, score)
        # It lasts until the report is made: points are passed on right after their checkpoint is kept.
        self.reported = folder


class _SharingTracker(TuneTracker):
    """Reports each validation with its checkpoint."""

    def __init__(self, job: TrialJob, total_reports: int, checkpoints: _SharedCheckpoints) -> None:
        super().__init__(job, total_reports)
        self._checkpoints = checkpoints

    def tell(self, report: Report) -> None:
        checkpoint = tune.Checkpoint.from_directory(str(self._checkpoints.reported))
        tune.report({**plain(report), "state": "running"}, checkpoint=checkpoint)


def run_member(config: Mapping[str, Any], *, job: TrialJob, folder: Storage) -> None:
    """The function that Tune runs: continues to train with ``values``, from the checkpoint of this or a better
    trial."""
    recipe = job.recipe(config)
    total = job.total_reports(recipe)
    graph = make_graph(recipe)
    stage = next(stage for stage in graph.stages if stage.name == job.stage)
    inputs = {name: artifact for name in stage.inputs if (artifact := graph.artifact(name)) is not None}
    # A trial keeps its name when it takes over the settings of another.
    output = folder.folder(tune.get_context().get_trial_name())
    checkpoints = _SharedCheckpoints(output.folder(CHECKPOINTS))
    context = StageContext(
        graph.workspace,
        output,
        inputs,
        _SharingTracker(job, total, checkpoints),
        trial=TrialHost(validations_per_epoch=job.reports_per_epoch, checkpoints=checkpoints),
    )
    try:
        stage.run(context)
    except HOPELESS as error:
        tell_failure(error)
        return
    # The last validation and not the best: what is ranked afterwards are the settings that it ended with.
    step, metrics = max((point for point in History(output).points if job.metric in point[1]), key=lambda p: p[0])
    tune.report({**plain(job.report_of(step, metrics)), "state": "finished"})
