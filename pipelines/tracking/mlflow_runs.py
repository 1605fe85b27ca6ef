"""MLflow: a run per pipeline run and a nested run per stage, all written by the driver.

Workers send their curves to the driver (``pipelines.train.metric_sink``), so the default SQLite file has one writer. If
``MLFLOW_TRACKING_URI`` names a server, that is used. What it misses while it cannot be reached is recorded later
(``pipelines.tracking.recording``).
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.recipe.tracking import TrackingConfig
from pipelines.tracker import StageTracker
from pipelines.tracking.address import VARIABLE, tracking_uri
from pipelines.tracking.recording import AwayError, Recording, is_left, record_left
from pipelines.tracking.run_state import RunState, Status
from pipelines.train.history import Point
from pipelines.workspace.artifact import digest, plain, versions
from pipelines.workspace.errors import StorageError
from pipelines.workspace.runs import UNRECORDED
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import path_below, shown

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipelines.tracking.recorder import MlflowRecorder

logger = logging.getLogger(__name__)


class PipelineTracker:
    """The parent run of one pipeline run.

    Args:
        workspace: where the database lies, unless there is a server; and what is recorded.
        config: which experiment.
        recipe: its settings become the parameters of the run.
        name: of the run.
        identity: tags that identify the run; an existing run with these tags is continued.

    Raises:
        ValueError: ``MLFLOW_TRACKING_URI`` is no address of a server or a database.
        StorageError: MLflow refuses, or its database cannot be written. A server that cannot be reached is
            a warning.
    """

    def __init__(
        self,
        workspace: Storage,
        config: TrackingConfig,
        recipe: Any,
        *,
        name: str = "pipeline",
        identity: Mapping[str, str] | None = None,
    ) -> None:
        uri = tracking_uri(workspace)
        if not workspace.is_local and not os.environ.get(VARIABLE):
            logger.warning(
                "%s is not set and %s cannot hold a database: runs are recorded in %s on this machine",
                VARIABLE,
                workspace.uri,
                uri,
            )
        self._workspace, self._config = workspace, config
        self._recorder = _recorder(workspace, uri)
        self._recording = Recording(workspace, shown(uri), self._recorder)
        tags = {**(identity or {}), **{f"version.{package}": version for package, version in versions().items()}}
        self.run = self.open_run(digest(identity) if identity else uuid.uuid4().hex, name, recipe, tags=tags)

    def open_run(
        self,
        key: str,
        name: str,
        settings: Any,
        *,
        tags: Mapping[str, str],
        nested: bool = False,
        output: Storage | None = None,
    ) -> MlflowRun:
        """Continues the run whose key is ``key``, or makes it.

        Args:
            key: names the run.
            name: as it is shown.
            settings: they become its parameters.
            tags: of it.
            nested: whether it lies below this one.
            output: the folder whose history holds its curves.
        """
        state = RunState(
            key=key,
            name=name,
            experiment=self._config.experiment,
            parent=self.run.state.key if nested else None,
            params={name: str(value) for name, value in _flat(plain(settings)).items()},
            tags=dict(tags),
            started_ms=_now_ms(),
            folder=None if output is None else _path(self._workspace, output),
        )
        return MlflowRun(self._recording, state, self._workspace, log_models=self._config.log_model)

    def stage(self, name: str, fingerprint: str, settings: Mapping[str, Any], output: Storage) -> MlflowRun:
        """Opens the nested run of a stage that writes to ``output``."""
        tags = {"stage": name, "fingerprint": fingerprint}
        # A key of its own each time: a stage that goes on in a later command is another run below another parent.
        return self.open_run(uuid.uuid4().hex, name, settings, tags=tags, nested=True, output=output)

    def nested_runs(self) -> list[Run] | None:
        """MLflow's runs below this one; None while the server cannot be reached."""
        return self._recording.ask(lambda: self._recorder.nested(self.run.state))

    def log_fingerprints(self, fingerprints: Mapping[str, str]) -> None:
        """Tags the run with the fingerprint of every stage, including those of the data."""
        self.run.log_tags({f"fingerprint.{stage}": fingerprint for stage, fingerprint in fingerprints.items()})

    def finish(self, status: Status) -> None:
        """Ends the parent run, and records as much as possible."""
        self.run.finish(status)
        try:
            self._recording.close()
        except (StorageError, ValueError) as error:
            if status == "FINISHED":
                raise
            logger.warning("%s", error)


class MlflowRun(StageTracker):
    """What one run should hold. Every change is recorded at once, or noted while the server cannot be reached."""

    def __init__(self, recording: Recording, state: RunState, workspace: Storage, *, log_models: bool) -> None:
        self._recording, self.state, self._workspace, self._log_models = recording, state, workspace, log_models
        self._has_curve = False
        self._save()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        figures = {name: float(value) for name, value in metrics.items()}
        self._save(figures=(*self.state.figures, (step, _now_ms(), figures)))

    def log_batch(self, points: Sequence[Point]) -> None:
        # An earlier run of the command may have begun the curve.
        self._save(points if self._has_curve else None)
        self._has_curve = True

    def log_history(self) -> None:
        """Logs the points of the history that are not logged yet."""
        self._save(None)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; they replace existing ones."""
        self._save(tags={**self.state.tags, **tags})

    def log_document(self, name: str, document: Any) -> None:
        """A JSON document that is in no file of the workspace, under the file name ``name``."""
        self._save(documents={**self.state.documents, name: plain(document)})

    def log_files(self, folder: Storage, names: Sequence[str]) -> None:
        path = _path(self._workspace, folder)
        self._save(files=(*self.state.files, *(f"{path}/{name}" for name in names)))

    def log_model(self, folder: Storage) -> None:
        if self._log_models:
            self._save(model=_path(self._workspace, folder))

    def finish(self, status: Status) -> None:
        try:
            self._save(None, status=status, ended_ms=_now_ms())
        except (StorageError, ValueError) as error:
            if status == "FINISHED":
                raise
            # The error that ended the run is being raised, and must not be hidden by this one.
            logger.warning("%s", error)

    def _save(self, points: Sequence[Point] | None = (), **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._recording.save(self.state, points)


def record_missed(workspace: Storage) -> None:
    """Records what an MLflow server has missed of earlier runs, if it can be reached now."""
    if not is_left(workspace):
        return
    uri = tracking_uri(workspace)
    recorder = _recorder(workspace, uri)
    try:
        recorder.require_answer()
        record_left(workspace, shown(uri), recorder)
    except AwayError as error:
        logger.warning("%s; %s says of which runs it misses something", error, workspace.place(UNRECORDED))


def _recorder(workspace: Storage, uri: str) -> MlflowRecorder:
    for noisy in ("alembic", "mlflow.store", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Hides a warning that a pickled model runs code when it is loaded, which the documentation mentions.
    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    # Hides a warning per attempt; that the server cannot be reached is logged once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from pipelines.tracking.recorder import MlflowRecorder

    given = os.environ.get(VARIABLE)
    recorder = MlflowRecorder(uri, workspace)
    if not given:
        # MLflow sets this variable for the whole process, but it holds only for this workspace.
        os.environ.pop(VARIABLE, None)
    return recorder


def _flat(document: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their dotted paths: settings as MLflow's parameters."""
    if isinstance(document, Mapping) and document:
        return {
            name: leaf
            for key, value in document.items()
            for name, leaf in _flat(value, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: document} if path else {}


def _path(workspace: Storage, folder: Storage) -> str:
    return path_below(workspace.uri, folder.uri)


def _now_ms() -> int:
    return int(time.time() * 1000)
