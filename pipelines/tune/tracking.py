"""A tuning in MLflow: one parent run, one nested run per trial, all written by the driver.

Trials write files and report to Tune. Only the driver opens the database, and reads the trials' histories for it, so a
SQLite file has one writer however many trials run. Nothing is lost when a trial dies, because its history is committed
before Tune gets the report. A resumed tuning finds its runs by their tags and logs what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.recipe.recipe import Recipe
from pipelines.tracking.mlflow_runs import MlflowRun, PipelineTracker
from pipelines.tracking.run_state import Status
from pipelines.tune.journal import TrialRecord
from pipelines.tune.tuning import Tuning
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.storage import Storage

_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class TuningTracker(PipelineTracker):
    """The parent run of a tuning."""

    def __init__(self, tuning: Tuning) -> None:
        settings = {"tune": plain(tuning.config), **plain(tuning.recipe)}
        self._identity = {"tuning": tuning.fingerprint}
        name = f"tuning {tuning.config.stage}"
        workspace, tracking = tuning.graph.workspace, tuning.recipe.tracking
        super().__init__(workspace, tracking, settings, name=name, identity=self._identity)
        self.log_fingerprints({tuning.config.stage: tuning.graph.fingerprints[tuning.config.stage]})

    def trial(self, record: TrialRecord, recipe: Recipe, output: Storage) -> TrialRun:
        """Opens or continues the nested run of a trial whose stage writes to ``output``."""
        tags = {"trial": record.name, "phase": record.phase, "setting": record.label, "fingerprint": record.fingerprint}
        key = digest({**self._identity, "trial": record.name})
        return TrialRun(self.open_run(key, record.name, recipe, tags=tags, nested=True, output=output))

    def unsettled(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Those of the ended ``records`` whose nested runs are not marked as ended, because the driver was killed in
        between.

        If the server cannot be reached this is not known, so all of them are recorded again.
        """
        nested = self.nested_runs() or []
        statuses = {run.data.tags.get("trial"): run.info.status for run in nested}
        return [record for record in records if record.ended and statuses.get(record.name) != _STATUS[record.state]]

    def log_best(self, value: float, ended: int) -> None:
        """One point of the curve of the best value, over the number of trials that ended."""
        self.run.log_metrics({"best/value": value}, ended)

    def log_results(
        self,
        folder: Storage,
        names: Sequence[str],
        metrics: Mapping[str, float],
        trials: int,
        tables: Mapping[str, Mapping[str, Sequence[Any]]],
        documents: Mapping[str, Any],
    ) -> None:
        """Logs the results of the whole tuning: files of its folder, metrics, tables by column, JSON documents.

        A tuning that is extended has new metrics, so they are curves over the number of ``trials``.
        """
        self.run.log_files(folder, names)
        self.run.log_metrics(metrics, trials)
        for name, table in tables.items():
            # In the format of MLflow's log_table, which itself would append the rows again at every call.
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            self.run.log_document(name, {"columns": list(table), "data": rows})
        shown = [{"path": name, "type": "table"} for name in tables]
        self.run.log_tags({"mlflow.loggedArtifacts": json.dumps(shown)})
        for name, document in documents.items():
            self.run.log_document(name, document)


class TrialRun:
    """The nested run of one trial."""

    def __init__(self, run: MlflowRun) -> None:
        self._run = run

    def catch_up(self) -> None:
        """Logs the points of the trial's history that are not logged yet."""
        self._run.log_history()

    def finish(self, record: TrialRecord, checkpoint: str) -> None:
        """Logs the outcome and where the model lies, and closes the run."""
        if record.value is not None:
            self._run.log_metrics({"value": record.value}, record.reports[-1].step if record.reports else 0)
        self._run.log_tags({"checkpoint": checkpoint, "stop_reason": record.reason})
        self._run.log_document("trial.json", record)
        self._run.finish(_STATUS[record.state])

    def interrupt(self, status: Status) -> None:
        """Closes the run of a trial that did not end; it is continued when the tuning goes on."""
        self._run.log_tags({"stop_reason": "the tuning was interrupted"})
        self._run.finish(status)
