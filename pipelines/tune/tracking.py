"""A search in MLflow: one parent run, one nested run per trial, all written by the driver.

Trials write files and talk to Tune; the driver reads their histories and is the only one that
opens the database, so a SQLite file has one writer however many trials run, and nothing is lost when
one dies: the history is committed before Tune hears of it. A search that goes on finds its runs by
their tags and logs what they lack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.recipe.recipe import Recipe
from pipelines.tracking.mlflow_runs import MlflowStageTracker, PipelineTracker, Status, key_of
from pipelines.train.history import History
from pipelines.tune.tuning import TrialRecord
from pipelines.tune.tuning import Tuning as Search
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SearchTracker(PipelineTracker):
    """The parent run of a search."""

    def __init__(self, search: Search) -> None:
        settings = {"search": plain(search.config), **plain(search.recipe)}
        self._identity = {"search": search.fingerprint}
        super().__init__(
            search.graph.workspace,
            search.recipe.tracking,
            settings,
            name=f"search {search.config.stage}",
            identity=self._identity,
        )
        self.log_fingerprints({search.config.stage: search.graph.fingerprints[search.config.stage]})

    def trial(self, record: TrialRecord, recipe: Recipe, output: Storage) -> TrialRun:
        """Opens or continues the nested run of a trial whose stage writes to ``output``."""
        run = key_of({**self._identity, "trial": record.name})
        tags = {
            "trial": record.name,
            "phase": record.phase,
            "setting": record.label,
            "fingerprint": record.fingerprint,
        }
        self.open_run(run, record.name, recipe, parent=self.run, tags=tags)
        return TrialRun(self.tracker_of(run), output)

    def unsettled(self, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Those of the ended ``records`` whose nested runs do not say so: the driver was killed in between.

        Of a server that is away it is not known, so it is told again of all of them.
        """
        nested = self.nested_runs() or []
        statuses = {run.data.tags.get("trial"): run.info.status for run in nested}
        return [record for record in records if record.ended and statuses.get(record.name) != _STATUS[record.state]]

    def log_best(self, value: float, ended: int) -> None:
        """One point of the curve of the best value, over the number of trials that ended."""
        self.tracker_of(self.run).log_metrics({"best/value": value}, ended)

    def log_results(
        self,
        folder: Storage,
        names: Sequence[str],
        metrics: Mapping[str, float],
        trials: int,
        tables: Mapping[str, Mapping[str, Sequence[Any]]],
        documents: Mapping[str, Any],
    ) -> None:
        """What the whole search came to: files of its folder, figures, tables by column, JSON documents.

        A search that is extended has new figures, so they are curves over the number of ``trials``.
        """
        tracker = self.tracker_of(self.run)
        tracker.log_files(folder, names)
        tracker.log_metrics(metrics, trials)
        for name, table in tables.items():
            # As MLflow's log_table writes it, which would add the rows once more every time.
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            tracker.log_document(name, {"columns": list(table), "data": rows})
        shown = [{"path": name, "type": "table"} for name in tables]
        tracker.log_tags({"mlflow.loggedArtifacts": json.dumps(shown)})
        for name, document in documents.items():
            tracker.log_document(name, document)


class TrialRun:
    """The nested run of one trial."""

    def __init__(self, tracker: MlflowStageTracker, output: Storage) -> None:
        self._tracker, self._output = tracker, output

    def catch_up(self) -> None:
        """Logs the points of the trial's history that are not logged yet."""
        self._tracker.log_curve(History(self._output).points)

    def finish(self, record: TrialRecord, checkpoint: str) -> None:
        """Logs the outcome and where the model lies, and closes the run."""
        self.catch_up()
        if record.value is not None:
            self._tracker.log_metrics({"value": record.value}, record.reports[-1].step if record.reports else 0)
        self._tracker.log_tags({"checkpoint": checkpoint, "stop_reason": record.reason})
        self._tracker.log_document("trial.json", record)
        self._tracker.finish(_STATUS[record.state])

    def interrupt(self, status: Status) -> None:
        """Closes the run of a trial that did not end; it is continued when the search goes on."""
        self.catch_up()
        self._tracker.log_tags({"stop_reason": "the search was interrupted"})
        self._tracker.finish(status)
