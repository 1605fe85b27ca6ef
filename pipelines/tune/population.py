"""Population-based training: trials that take over weights and settings of better ones on the way.

What such a trial ends with was made by several settings, so it is no stage's artifact: it lies in the
folder of the search, and the settings that the best ones ended with go into the final ranking, where
each is trained from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from pipelines.graph import make_graph
from pipelines.stages.stage import StageContext
from pipelines.train.checkpoint_folder import CheckpointFolder
from pipelines.train.files import CHECKPOINTS
from pipelines.train.history import History
from pipelines.train.trial_host import TrialHost
from pipelines.tune.journal import Report
from pipelines.tune.trial import HOPELESS, TrialJob, TuneTracker, tell_failure
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

POPULATION = "population"
"""Folder of the search that holds a folder per trial."""


class _SharedCheckpoints(CheckpointFolder):
    """Checkpoints that Tune may give to another trial, and in whose place it may give another's."""

    reported: Path
    """The checkpoint that the next report goes with."""

    def latest(self, scratch: Path) -> Path | None:
        given = tune.get_checkpoint()
        return super().latest(scratch) if given is None else Path(given.to_directory(str(scratch)))

    def keep(self, folder: Path, score: float) -> None:
        super().keep(folder, score)
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
    """The function that Tune runs: trains on with ``values``, from where this trial or a better one stood."""
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
        graph.fingerprints[job.stage],
        inputs,
        _SharingTracker(job, total, checkpoints),
        trial=TrialHost(validations_per_epoch=job.reports_per_epoch, checkpoints=checkpoints),
    )
    try:
        stage.run(context)
    except HOPELESS as error:
        tell_failure(error)
        return
    step, metrics = max((point for point in History(output).points if job.metric in point[1]), key=lambda p: p[0])
    tune.report({**plain(job.report_of(step, metrics)), "state": "finished"})
