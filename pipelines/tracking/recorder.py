"""Makes calls to MLflow that can be made again: whoever repeats one, in another process too, changes nothing.

A call is a JSON document that names a run by a key of ours, which is a tag of MLflow's run. So it can
be written down where no run can be made yet, and a run that an earlier process has made is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import requests
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from pipelines.tracking.outbox import AwayError, Call
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import shown

KEY, PARENT = "hbi.run", "mlflow.parentRunId"
"""Tags: our name of a run, and MLflow's of the run above it."""

_PARAM_LENGTH = 500
_BATCH_METRICS = 900  # MLflow takes 1,000 metrics in one call
_BATCH_PARAMS = 100
_MOST_RUNS = 50_000  # of one parent; MLflow gives no more at once

_PROBE_S = 5
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", _TIMEOUT: "20"}
"""MLflow's own, 7 and 120 s, would hold up a training for minutes. What the user has set is kept."""
_UPLOAD_TIMEOUT_S = "600"
"""A server that passes a model on to a store answers when it has arrived there."""

_TROUBLE = frozenset({429, 500, 502, 503, 504})
_CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage"}
"""What MLflow itself writes to an object store with."""


class MlflowRecorder:
    """Writes to the server or database at ``uri``.

    Every method raises ``AwayError`` where the server cannot be reached, and another ``StorageError``
    where it refuses, or where a database cannot be written.

    Args:
        uri: of MLflow.
        workspace: what calls take files from; beside a database it also holds the artifacts.
        experiment: its name.
    """

    def __init__(self, uri: str, workspace: Storage, experiment: str) -> None:
        self._uri, self._workspace, self._experiment = uri, workspace, experiment
        self._is_server = uri.startswith("http")
        self._runs: dict[str, _RecordedRun] = {}
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        mlflow.set_tracking_uri(uri)
        self._calls: Mapping[str, Callable[..., None]] = {
            "open": self._open,
            "metrics": self._log_metrics,
            "tags": self._log_tags,
            "document": self._log_document,
            "files": self._log_files,
            "model": self._log_model,
            "end": self._end,
        }

    def require_answer(self) -> None:
        """Asks a server for a sign of life; takes a few seconds at most."""
        if not self._is_server:
            return  # a database is asked by the first call
        with self._naming_errors():
            answer = http_request(
                get_default_host_creds(self._uri),
                "/health",
                "GET",
                max_retries=0,
                timeout=_PROBE_S,
                raise_on_status=False,
            )
        if answer.status_code in _TROUBLE:
            raise AwayError(f"cannot record the run in {shown(self._uri)}: it answers {answer.status_code}")

    def make(self, call: Call) -> None:
        """Makes a call; makes nothing of what was made before."""
        arguments = dict(call)
        key = str(call["run"])
        try:
            with self._naming_errors():
                self._calls[arguments.pop("call")](**arguments)
        except AwayError:
            # Whether it arrived is not known: before it is made again, the server is asked what it has.
            self._runs.pop(key, None)
            raise

    def nested(self, key: str) -> list[Run]:
        """The runs below the run ``key``."""
        with self._naming_errors():
            parent = self._run(key).run_id
            return self._search(f"tags.`{PARENT}` = '{parent}'", _MOST_RUNS)

    def end_open(self, runs: Sequence[str]) -> None:
        """Ends those of the runs, and of the runs above them, that still run."""
        with self._naming_errors():
            for found in map(self._find, runs):
                while found is not None and found.info.status == "RUNNING":
                    self._client.set_terminated(found.info.run_id, "KILLED")
                    above = found.data.tags.get(PARENT)
                    found = self._client.get_run(above) if above else None

    @cached_property
    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self._uri)

    @cached_property
    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts lie; with a database MLflow would take the current folder.
        location = None if self._is_server else f"{_artifact_uri(self._workspace)}/mlartifacts"
        _require_client(location)
        return str(self._client.create_experiment(self._experiment, artifact_location=location))

    def _open(
        self, run: str, name: str, parent: str | None, tags: Mapping[str, str], params: Mapping[str, Any], at: int
    ) -> None:
        known: Collection[str] = frozenset()
        found = self._find(run)
        if found is None:
            above = {PARENT: self._run(parent).run_id} if parent else {}
            created = self._client.create_run(
                self._experiment_id, start_time=at, run_name=name, tags={KEY: run, **above, **tags}
            )
            recorded = _RecordedRun(created.info.run_id, frozenset())
        else:
            recorded, known = _RecordedRun(found.info.run_id, None), found.data.params.keys()
            self._client.update_run(recorded.run_id, status="RUNNING")
        self._runs[run] = recorded
        # A parameter cannot be changed; settings that may differ from an earlier run's change no result.
        new = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in params.items() if name not in known]
        for start in range(0, len(new), _BATCH_PARAMS):
            self._client.log_batch(recorded.run_id, params=new[start : start + _BATCH_PARAMS])

    def _log_metrics(self, run: str, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        recorded = self._run(run)
        if recorded.logged is None:
            recorded.logged = self._logged(recorded.run_id)
        values = [
            Metric(name, value, at, step)
            for step, at, metrics in points
            for name, value in metrics.items()
            if (step, name) not in recorded.logged
        ]
        for start in range(0, len(values), _BATCH_METRICS):
            self._client.log_batch(recorded.run_id, metrics=values[start : start + _BATCH_METRICS])

    def _log_tags(self, run: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self._run(run).run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _log_document(self, run: str, name: str, document: Any) -> None:
        self._client.log_dict(self._run(run).run_id, document, name)

    def _log_files(self, run: str, folder: str, names: Sequence[str]) -> None:
        run_id, storage = self._run(run).run_id, self._workspace.folder(folder)
        with TemporaryDirectory() as scratch:
            for name in names:
                path = Path(scratch) / name
                path.write_bytes(storage.read_bytes(name))
                self._client.log_artifact(run_id, str(path))

    def _log_model(self, run: str, folder: str) -> None:
        from pipelines.models.mlflow_model import served_model

        run_id = self._run(run).run_id
        for logged in self._client.search_logged_models(
            [self._experiment_id], filter_string=f"source_run_id = '{run_id}'"
        ):
            if logged.status == "READY":
                return
            self._client.delete_logged_model(logged.model_id)
        model, signature = served_model(self._workspace.folder(folder))
        with _long_timeout(), mlflow.start_run(run_id=run_id):
            mlflow.pytorch.log_model(model, name="model", signature=signature, serialization_format="pickle")
        # Leaving the block above ends the run; the stage goes on.
        self._client.update_run(run_id, status="RUNNING")

    def _end(self, run: str, status: str, at: int) -> None:
        self._client.set_terminated(self._run(run).run_id, status, at)

    def _run(self, key: str) -> _RecordedRun:
        if key not in self._runs:
            found = self._find(key)
            if found is None:
                raise MlflowException(f"it holds no run with the tag {KEY} = {key}; it was deleted, or never made")
            self._runs[key] = _RecordedRun(found.info.run_id, None)
        return self._runs[key]

    def _find(self, key: str) -> Run | None:
        found = self._search(f"tags.`{KEY}` = '{key}'", 1)
        return found[0] if found else None

    def _search(self, condition: str, most: int) -> list[Run]:
        return list(self._client.search_runs([self._experiment_id], filter_string=condition, max_results=most))

    def _logged(self, run_id: str) -> frozenset[tuple[int, str]]:
        """Which points the server has."""
        return frozenset(
            (point.step, name)
            for name in self._client.get_run(run_id).data.metrics
            for point in self._client.get_metric_history(run_id, name)
        )

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Turns what MLflow raises into ``StorageError``."""
        try:
            yield
        except StorageError:
            raise
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # It may repeat the address, with the credentials in it.
            text = str(error).replace(self._uri.rstrip("/"), shown(self._uri)).strip() or type(error).__name__
            message = f"cannot record the run in {shown(self._uri)}: {text.splitlines()[0][:300]}"
            if self._is_server and _is_away(error):
                raise AwayError(message) from error
            raise StorageError(
                f"{message}. Make room there, or check that it can be reached, and run the same command again: what "
                "is finished is kept"
            ) from error


class _RecordedRun:
    """A run of MLflow, and the points that it had before this process wrote to it; None = not known yet."""

    def __init__(self, run_id: str, logged: Collection[tuple[int, str]] | None) -> None:
        self.run_id, self.logged = run_id, logged


@contextmanager
def _long_timeout() -> Iterator[None]:
    """Waits long for the answer to an upload, unless the user has set how long."""
    if os.environ[_TIMEOUT] != _PATIENCE[_TIMEOUT]:
        yield
        return
    os.environ[_TIMEOUT] = _UPLOAD_TIMEOUT_S
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = _PATIENCE[_TIMEOUT]


def flat(document: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their dotted paths: settings as MLflow's parameters."""
    if isinstance(document, Mapping) and document:
        return {
            name: leaf
            for key, value in document.items()
            for name, leaf in flat(value, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: document} if path else {}


def _is_away(error: BaseException | None) -> bool:
    """Whether a server does not answer, or answers that it is in trouble."""
    while error is not None:
        if isinstance(error, requests.exceptions.SSLError):
            return False
        if isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError)):
            return True
        if isinstance(error, RestException) and error.get_http_status_code() in _TROUBLE:
            return True
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return error.response.status_code in _TROUBLE
        error = error.__cause__ or error.__context__
    return False


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
