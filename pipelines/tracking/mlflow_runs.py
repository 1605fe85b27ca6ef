"""MLflow: a run per pipeline run, a nested run per stage, written by the driver alone.

Workers send their curves to the driver (``pipelines.train.metric_sink``), so the default SQLite
file has one writer. The server named by ``MLFLOW_TRACKING_URI`` is used where there is one; while it
is away the calls are kept in the workspace (``pipelines.tracking.outbox``).
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.recipe.tracking import TrackingConfig
from pipelines.tracker import StageTracker
from pipelines.tracking.outbox import AwayError, Outbox, deliver_left, is_left
from pipelines.workspace.artifact import digest, plain, versions
from pipelines.workspace.errors import StorageError
from pipelines.workspace.runs import UNDELIVERED
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import shown

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipelines.tracking.recorder import MlflowRecorder

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri(workspace: Storage) -> str:
    """``MLFLOW_TRACKING_URI``, or a SQLite file in the workspace.

    A workspace in an object store cannot hold a database; the file is then ``mlflow.db`` in the
    folder the command was started in.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = Path(workspace.path()) if workspace.is_local else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def ui_command(workspace: Storage) -> str:
    """The command that shows the runs of ``workspace`` in a browser."""
    uri = tracking_uri(workspace)
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"


class PipelineTracker:
    """The parent run of one pipeline run.

    Args:
        workspace: where the database lies, unless there is a server; and what a server that is away misses.
        config: which experiment.
        recipe: its settings become the parameters of the run.
        name: of the run.
        identity: tags that tell the run from all others; one that has them is continued.

    Raises:
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
        if not workspace.is_local and not os.environ.get("MLFLOW_TRACKING_URI"):
            logger.warning(
                "MLFLOW_TRACKING_URI is not set and %s cannot hold a database: runs are recorded in %s on this machine",
                workspace.uri,
                uri,
            )
        self._workspace, self._config = workspace, config
        self._recorder = _recorder(workspace, config)
        self._outbox = Outbox(workspace, shown(uri), self._recorder)
        self.run = key_of(identity) if identity else uuid.uuid4().hex
        self.open_run(self.run, name, recipe, tags=identity or {})
        self.tracker_of(self.run).log_tags({f"version.{package}": version for package, version in versions().items()})

    def open_run(
        self, run: str, name: str, settings: Any, *, parent: str | None = None, tags: Mapping[str, str]
    ) -> None:
        """Continues the run whose key is ``run``, or makes it."""
        from pipelines.tracking.recorder import flat

        params = {name: str(value) for name, value in flat(plain(settings)).items()}
        self._outbox.send(
            {
                "call": "open",
                "run": run,
                "name": name,
                "parent": parent,
                "tags": dict(tags),
                "params": params,
                "at": _now_ms(),
            }
        )

    def stage(self, name: str, fingerprint: str, settings: Mapping[str, Any]) -> MlflowStageTracker:
        """Opens the nested run of a stage."""
        run = uuid.uuid4().hex
        self.open_run(run, name, settings, parent=self.run, tags={"stage": name, "fingerprint": fingerprint})
        return self.tracker_of(run, log_models=self._config.log_model)

    def tracker_of(self, run: str, *, log_models: bool = False) -> MlflowStageTracker:
        """What writes to the run whose key is ``run``."""
        return MlflowStageTracker(self._outbox, run, self._workspace, log_models=log_models)

    def nested_runs(self) -> list[Run] | None:
        """MLflow's runs below this one; None while the server is away."""
        return self._outbox.ask(lambda: self._recorder.nested(self.run))

    def log_fingerprints(self, fingerprints: Mapping[str, str]) -> None:
        """Tags the run with the fingerprint of every stage, the data's among them."""
        self.tracker_of(self.run).log_tags(
            {f"fingerprint.{stage}": fingerprint for stage, fingerprint in fingerprints.items()}
        )

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Final metrics of the whole run."""
        self.tracker_of(self.run).log_metrics(metrics)

    def finish(self, status: Status) -> None:
        """Ends the parent run, and delivers what can be delivered."""
        self.tracker_of(self.run).finish(status)
        try:
            self._outbox.close()
        except StorageError as error:
            if status == "FINISHED":
                raise
            logger.warning("%s", error)


class MlflowStageTracker(StageTracker):
    """A run of MLflow, by its key; every point of a curve is sent once."""

    def __init__(self, outbox: Outbox, run: str, workspace: Storage, *, log_models: bool) -> None:
        self._outbox, self._run, self._workspace, self._log_models = outbox, run, workspace, log_models
        self._sent: set[tuple[int, str]] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_batch([(step, metrics)])

    def log_batch(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        now, new = _now_ms(), []
        for step, metrics in points:
            fresh = {name: float(value) for name, value in metrics.items() if (step, name) not in self._sent}
            self._sent.update((step, name) for name in fresh)
            if fresh:
                new.append((step, now, fresh))
        if new:
            self._send("metrics", points=new)

    def log_curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self.log_batch(points)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; one that it has is replaced."""
        self._send("tags", tags=dict(tags))

    def log_document(self, name: str, document: Any) -> None:
        self._send("document", name=name, document=plain(document))

    def log_files(self, folder: Storage, names: Sequence[str]) -> None:
        """Files of a folder in the workspace, where they must stay."""
        self._send("files", folder=self._path(folder), names=list(names))

    def log_model(self, folder: Storage) -> None:
        if self._log_models:
            self._send("model", folder=self._path(folder))

    def finish(self, status: Status) -> None:
        try:
            self._send("end", status=status, at=_now_ms())
        except StorageError as error:
            if status == "FINISHED":
                raise
            # What ended the run is being raised, and must not be hidden by this.
            logger.warning("%s", error)

    def _path(self, folder: Storage) -> str:
        return folder.uri.removeprefix(f"{self._workspace.uri}/")

    def _send(self, call: str, **arguments: Any) -> None:
        self._outbox.send({"call": call, "run": self._run, **arguments})


def key_of(identity: Mapping[str, str]) -> str:
    """What names a run that is continued, before MLflow does."""
    return digest(dict(identity))


def deliver_kept(workspace: Storage, config: TrackingConfig) -> None:
    """Delivers what earlier runs kept for an MLflow server that was away, where it is back."""
    if not is_left(workspace):
        return
    recorder = _recorder(workspace, config)
    try:
        recorder.require_answer()
        deliver_left(workspace, shown(tracking_uri(workspace)), recorder)
    except AwayError as error:
        logger.warning("%s; what earlier runs kept for it stays in %s", error, workspace.place(UNDELIVERED))


def _recorder(workspace: Storage, config: TrackingConfig) -> MlflowRecorder:
    for noisy in ("alembic", "mlflow.store", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns that a pickled model runs code when it is loaded: the docs say so, once.
    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    # It warns of every attempt; that a server is away is said once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from pipelines.tracking.recorder import MlflowRecorder

    given = os.environ.get("MLFLOW_TRACKING_URI")
    recorder = MlflowRecorder(tracking_uri(workspace), workspace, config.experiment)
    if not given:
        # MLflow exports it, but it belongs to this workspace, not to whatever this process runs next.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return recorder


def _now_ms() -> int:
    return int(time.time() * 1000)
