"""A search in MLflow: one parent run, one nested run per trial, all written by the driver.

Trials write files and talk to Tune; the driver reads their histories and is the only one that
opens the database, so a SQLite file has one writer however many trials run, and nothing is lost when
one dies: the history is committed before Tune hears of it. A search that goes on finds its runs by
their tags and logs what they lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.configs import Recipe
from pipelines.stages import plain
from pipelines.storage import Storage
from pipelines.tracking import MlflowStageTracker, PipelineTracker, Status
from pipelines.train.metric_sink import History
from pipelines.tune.journal import TrialRecord
from pipelines.tune.search import Search

_MOST_RUNS = 50_000  # of one parent; MLflow gives no more at once
_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SearchTracker(PipelineTracker):
    """The parent run of a search."""

    def __init__(self, search: Search) -> None:
        settings = {"search": plain(search.config), **plain(search.recipe)}
        identity = {"search": search.fingerprint}
        super().__init__(
            search.graph.workspace,
            search.recipe.tracking,
            settings,
            name=f"search {search.config.stage}",
            identity=identity,
        )
        self.log_fingerprints({search.config.stage: search.graph.fingerprints[search.config.stage]})

    def trial(self, record: TrialRecord, recipe: Recipe, output: Storage) -> TrialRun:
        """Opens or continues the nested run of a trial whose stage writes to ``output``."""
        identity = {"mlflow.parentRunId": self.run_id, "trial": record.name}
        tags = {"phase": record.phase, "setting": record.label, "fingerprint": record.fingerprint}
        run_id = self.open_run(record.name, plain(recipe), identity, tags)
        return TrialRun(self, run_id, output)

    def unsettled(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Those of the ended ``records`` whose nested runs do not say so: the driver was killed in between."""
        nested = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{self.run_id}'",
            max_results=_MOST_RUNS,
        )
        statuses = {run.data.tags.get("trial"): run.info.status for run in nested}
        return [record for record in records if record.ended and statuses.get(record.name) != _STATUS[record.state]]

    def log_best(self, value: float, ended: int) -> None:
        """One point of the curve of the best value, over the number of trials that ended."""
        self._tracker_of(self.run_id).log_metrics({"best/value": value}, ended)

    def log_results(
        self, folder: Path, metrics: Mapping[str, float], tables: Mapping[str, Any], documents: Mapping[str, Any]
    ) -> None:
        """What the whole search came to: the files in ``folder``, figures, tables by column, JSON documents."""
        tracker = self._tracker_of(self.run_id)
        self.client.log_artifacts(self.run_id, str(folder))
        tracker.log_metrics(metrics)
        for name, table in tables.items():
            self.client.log_table(self.run_id, table, name)
        for name, document in documents.items():
            tracker.log_document(name, document)

    def _tracker_of(self, run_id: str) -> MlflowStageTracker:
        return MlflowStageTracker(self.client, run_id, "search", log_models=False)


class TrialRun:
    """The nested run of one trial."""

    def __init__(self, parent: SearchTracker, run_id: str, output: Storage) -> None:
        self._client, self._run_id, self._output = parent.client, run_id, output
        self._tracker = MlflowStageTracker(parent.client, run_id, "trial", log_models=False)
        # What an earlier run of the search has logged.
        self._logged = {
            (point.step, name)
            for name in parent.client.get_run(run_id).data.metrics
            for point in parent.client.get_metric_history(run_id, name)
        }

    def catch_up(self) -> None:
        """Logs the points of the trial's history that are not logged yet."""
        new = []
        for step, metrics in History(self._output).points:
            fresh = {name: value for name, value in metrics.items() if (step, name) not in self._logged}
            self._logged |= {(step, name) for name in fresh}
            if fresh:
                new.append((step, fresh))
        self._tracker.log_batch(new)

    def finish(self, record: TrialRecord, checkpoint: str) -> None:
        """Logs the outcome and where the model lies, and closes the run."""
        self.catch_up()
        if record.value is not None:
            self._tracker.log_metrics({"value": record.value}, record.reports[-1].step if record.reports else 0)
        self._client.set_tag(self._run_id, "checkpoint", checkpoint)
        self._client.set_tag(self._run_id, "stop_reason", record.reason)
        self._tracker.log_document("trial.json", record)
        self._tracker.finish(_STATUS[record.state])

    def interrupt(self, status: Status) -> None:
        """Closes the run of a trial that did not end; it is continued when the search goes on."""
        self.catch_up()
        self._client.set_tag(self._run_id, "stop_reason", "the search was interrupted")
        self._tracker.finish(status)
