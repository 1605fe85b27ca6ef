"""MLflow: a run per pipeline run, a nested run per stage, written by the driver alone.

Workers send their curves to the driver (``pipelines.train.metric_sink``), so the default SQLite
file has one writer. The server named by ``MLFLOW_TRACKING_URI`` is used where there is one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pipelines.configs import TrackingConfig
from pipelines.stages import StageTracker, plain, versions
from pipelines.storage import Storage, StorageError, shown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARAM_LENGTH = 500
_BATCH_METRICS = 900  # MLflow takes 1,000 metrics in one call
_BATCH_PARAMS = 100

_CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage"}
"""What MLflow itself writes to an object store with."""


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
        workspace: where the database lies, unless there is a server.
        config: which experiment.
        recipe: its settings become the parameters of the run.
        name: of the run.
        identity: tags that tell the run from all others; one that has them is continued.
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
        with naming_errors(self._uri):
            self.client = cast("MlflowClient", _NamingClient(MlflowClient(tracking_uri=self._uri), self._uri))
        self._config = config
        self.experiment_id = self._find_experiment(workspace)
        self.run_id = self.open_run(name, recipe, identity)
        for package, version in versions().items():
            self.client.set_tag(self.run_id, f"version.{package}", version)

    def open_run(
        self, name: str, settings: Any, identity: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Continues the run with the tags ``identity``, or creates one; returns its id."""
        run_id, known = None, frozenset[str]()
        if identity:
            has_tags = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
            for run in self.client.search_runs([self.experiment_id], filter_string=has_tags, max_results=1):
                run_id, known = str(run.info.run_id), frozenset(run.data.params)
                self.client.update_run(run_id, status="RUNNING")
        if run_id is None:
            run_id = self._create_run(name, {**(identity or {}), **(tags or {})})
        # A parameter cannot be changed; settings that may differ from an earlier run's change no result.
        _log_params(self.client, run_id, plain(settings), known)
        return run_id

    def _find_experiment(self, workspace: Storage) -> str:
        name = self._config.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts lie; with a database MLflow would take the current folder.
        location = None if self._uri.startswith("http") else f"{_artifact_uri(workspace)}/mlartifacts"
        _require_client(location)
        return str(self.client.create_experiment(name, artifact_location=location))

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def stage(self, name: str, fingerprint: str, settings: Mapping[str, Any]) -> MlflowStageTracker:
        """Opens the nested run of a stage."""
        tags = {"mlflow.parentRunId": self.run_id, "stage": name, "fingerprint": fingerprint}
        run_id = self.open_run(name, settings, tags=tags)
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
        _terminate(self.client, self.run_id, status)


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

    def log_text(self, name: str, text: str) -> None:
        self._client.log_text(self.run_id, text, name)

    def log_model(self, folder: Storage) -> None:
        if not self._log_models:
            return
        import mlflow

        from pipelines.train.mlflow_model import served_model

        model, signature = served_model(folder)
        with naming_errors(mlflow.get_tracking_uri()), mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(model, name="model", signature=signature, serialization_format="pickle")
        # Leaving the block above ends the run; the stage goes on.
        self._client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: Status) -> None:
        _terminate(self._client, self.run_id, status)


class _NamingClient:
    """MLflow's client, whose errors name the server or database and say what to do."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for while it is copied, before it has a client
            raise AttributeError(name)
        method = getattr(self._client, name)

        @wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            with naming_errors(self._uri):
                return method(*args, **options)

        return call


@contextmanager
def naming_errors(uri: str) -> Iterator[None]:
    """Turns what MLflow raises about the server or database at ``uri`` into ``StorageError``."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise StorageError(
            f"cannot record the run in {shown(uri)}: {reason}. Make room there, or check that it can be reached, and "
            "run the same command again: what is finished is kept"
        ) from error


def _terminate(client: MlflowClient, run_id: str, status: Status) -> None:
    try:
        client.set_terminated(run_id, status)
    except StorageError as error:
        if status == "FINISHED":
            raise
        # What ended the run is being raised, and must not be hidden by this.
        logger.warning("%s", error)


def _artifact_uri(workspace: Storage) -> str:
    return f"file://{workspace.path()}" if workspace.is_local else workspace.uri


def _require_client(location: str | None) -> None:
    """Raises ``ValueError`` where MLflow would find out at the end of a stage that it cannot write there."""
    package = _CLIENTS.get((location or "").partition("://")[0])
    try:
        found = package is None or find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it lies in
        found = False
    if not found:
        raise ValueError(
            f"MLflow keeps its artifacts in {location} and needs {package} for it: pip install 'hbi-on-ray[cloud]', or "
            "set MLFLOW_TRACKING_URI to a server that keeps them"
        )


def _log_params(client: MlflowClient, run_id: str, document: Mapping[str, Any], known: Collection[str]) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in _flatten(document) if name not in known]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])


def _flatten(document: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(document, Mapping) and document:
        return [leaf for key, value in document.items() for leaf in _flatten(value, f"{path}.{key}" if path else key)]
    return [(path, document)]
