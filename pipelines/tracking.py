"""MLflow: a run per pipeline run, a nested run per stage, written by the driver alone.

Workers send their curves to the driver (``pipelines.train.metric_sink``), so the default SQLite
file has one writer. The server named by ``MLFLOW_TRACKING_URI`` is used where there is one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pipelines.configs import TrackingConfig
from pipelines.stages import StageTracker, plain, versions
from pipelines.storage import Storage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARAM_LENGTH = 500
_BATCH_METRICS = 900  # MLflow takes 1,000 metrics in one call
_BATCH_PARAMS = 100


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
    """The parent run of one pipeline run."""

    def __init__(self, workspace: Storage, config: TrackingConfig, recipe: Any) -> None:
        import mlflow
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow.store", "mlflow.tracking"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        # It warns that a pickled model runs code when it is loaded: the docs say so, once.
        logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
        self._uri = tracking_uri(workspace)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        if not given and not workspace.is_local:
            logger.warning(
                "MLFLOW_TRACKING_URI is not set and %s cannot hold a database: runs are recorded in %s on this machine",
                workspace.uri,
                self._uri,
            )
        mlflow.set_tracking_uri(self._uri)
        if not given:
            # MLflow exports it, but it belongs to this workspace, not to whatever this process runs next.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        self.client: MlflowClient = MlflowClient(tracking_uri=self._uri)
        self._config = config
        self._experiment = self._find_experiment(workspace)
        self.run_id = self._create_run("pipeline", {"mlflow.runName": "pipeline"})
        _log_params(self.client, self.run_id, plain(recipe))
        for package, version in versions().items():
            self.client.set_tag(self.run_id, f"version.{package}", version)

    def _find_experiment(self, workspace: Storage) -> str:
        name = self._config.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts lie; with a database MLflow would take the current folder.
        location = None if self._uri.startswith("http") else f"{_artifact_uri(workspace)}/mlartifacts"
        return str(self.client.create_experiment(name, artifact_location=location))

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self._experiment, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def stage(self, name: str, fingerprint: str, settings: Mapping[str, Any]) -> MlflowStageTracker:
        """Opens the nested run of a stage."""
        run_id = self._create_run(name, {"mlflow.parentRunId": self.run_id, "stage": name, "fingerprint": fingerprint})
        _log_params(self.client, run_id, plain(settings))
        return MlflowStageTracker(self.client, run_id, name, log_models=self._config.log_model)

    def log_fingerprints(self, fingerprints: Mapping[str, str]) -> None:
        """Tags the run with the fingerprint of every stage, the data's among them."""
        for stage, fingerprint in fingerprints.items():
            self.client.set_tag(self.run_id, f"fingerprint.{stage}", fingerprint)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Final metrics of the whole run."""
        MlflowStageTracker(self.client, self.run_id, "pipeline", log_models=False).log_metrics(metrics)

    def finish(self, status: Status) -> None:
        """Ends the parent run."""
        self.client.set_terminated(self.run_id, status)


class MlflowStageTracker(StageTracker):
    """The nested run of one stage."""

    def __init__(self, client: MlflowClient, run_id: str, stage: str, *, log_models: bool) -> None:
        self._client, self.run_id, self._stage, self._log_models = client, run_id, stage, log_models

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_batch([(step, metrics)])

    def log_batch(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, step) for step, metrics in points for name, value in metrics.items()]
        for start in range(0, len(values), _BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=values[start : start + _BATCH_METRICS])

    def log_document(self, name: str, document: Any) -> None:
        self._client.log_dict(self.run_id, plain(document), name)

    def log_model(self, folder: Storage) -> None:
        if not self._log_models:
            return
        import mlflow

        from pipelines.train.checkpoints import load_model
        from pipelines.train.mlflow_model import RetrievalScorer

        with TemporaryDirectory() as scratch:
            model = load_model(folder, Path(scratch))
        scorer, signature = RetrievalScorer(model), RetrievalScorer.signature(model)
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(scorer, name="model", signature=signature, serialization_format="pickle")
        # Leaving the block above ends the run; the stage goes on.
        self._client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: Status) -> None:
        self._client.set_terminated(self.run_id, status)


def _artifact_uri(workspace: Storage) -> str:
    return f"file://{workspace.path()}" if workspace.is_local else workspace.uri


def _log_params(client: MlflowClient, run_id: str, document: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in _flatten(document)]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])


def _flatten(document: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(document, Mapping) and document:
        return [leaf for key, value in document.items() for leaf in _flatten(value, f"{path}.{key}" if path else key)]
    return [(path, document)]
