"""Updates MLflow's runs to what they should hold. Repeating an update, also in another process, changes nothing.

A run is found by a key of ours, which is a tag of MLflow's run. Points that the server has are not sent again, except
figures that have changed since. Documents and files replace those of the same name, and a model is logged once.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

from pipelines.tracking.address import is_server
from pipelines.tracking.recording import AwayError
from pipelines.tracking.run_state import RunState
from pipelines.train.history import History, Point
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import shown

logger = logging.getLogger(__name__)

KEY, PARENT = "hbi.run", "mlflow.parentRunId"
"""Tags: our name of a run, and MLflow's of the run above it."""

_PARAM_LENGTH = 500
_BATCH = {"params": 100, "tags": 100, "metrics": 900}
"""Largest number of each kind in one call; MLflow refuses more than 100, 100 and 1,000."""
_MOST_RUNS = 50_000  # of one parent; MLflow gives no more at once

_PROBE_S = 5
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", _TIMEOUT: "20"}
"""MLflow's defaults, 7 retries and 120 s, would delay a training by minutes. Settings of the user are kept."""
_UPLOAD_TIMEOUT_S = "600"
"""Long, because a server that forwards a model to a store answers only when it has arrived there."""

# Too many requests, or an error of the server or of a gateway before it: later the same request may succeed.
_TROUBLE = frozenset({429, 500, 502, 503, 504})
_CLIENTS = {"s3": "boto3", "gs": "google.cloud.storage"}
"""The packages with which MLflow writes to object stores."""


@dataclass
class _Recorded:
    """What this process knows of MLflow's run."""

    run_id: str
    state: RunState
    points: dict[tuple[int, str], tuple[int, float]] | None = None
    """The latest points that the server has, time in ms and value, by step and name; None = not asked yet."""


class MlflowRecorder:
    """Writes to the server or database at ``uri``.

    Every method raises ``AwayError`` where the server cannot be reached, and another ``StorageError``
    where it refuses, or where a database cannot be written.

    Args:
        uri: of MLflow.
        workspace: holds histories, files and models; beside a database also the artifacts.
    """

    def __init__(self, uri: str, workspace: Storage) -> None:
        self._uri, self._workspace = uri, workspace
        self._is_server = is_server(uri)
        self._runs: dict[str, _Recorded] = {}
        self._experiments: dict[str, str] = {}
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        mlflow.set_tracking_uri(uri)

    def require_answer(self) -> None:
        """Checks that the server answers, within a few seconds."""
        if not self._uri.startswith("http"):
            return  # a database, or Databricks, is asked by the first call
        with self._naming_errors():
            answer = http_request(
                get_default_host_creds(self._uri),
                "/health",
                "GET",
                # Whoever waits asks again anyway, and a 5xx is to be looked at below, not raised.
                max_retries=0,
                timeout=_PROBE_S,
                raise_on_status=False,
            )
        if answer.status_code in _TROUBLE:
            raise AwayError(f"cannot record the run in {shown(self._uri)}: it answers {answer.status_code}")

    def record(self, run: RunState, points: Sequence[Point] | None = ()) -> None:
        """Updates MLflow's run to ``run`` and adds ``points`` to its curves; None = all points of the history."""
        try:
            with self._naming_errors():
                self._record(run, points)
        except AwayError:
            # Whether the points arrived is not known, so the server is asked what it has before they are sent again.
            self._runs.pop(run.key, None)
            raise

    def nested(self, run: RunState) -> list[Run]:
        """MLflow's runs below ``run``."""
        with self._naming_errors():
            parent = self._find(run.key, run.experiment)
            condition = f"tags.`{PARENT}` = '{parent.info.run_id if parent else None}'"
            return self._search(run.experiment, condition, _MOST_RUNS)

    @cached_property
    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self._uri)

    def _record(self, run: RunState, points: Sequence[Point] | None) -> None:
        known = self._runs.get(run.key) or self._continued(run)
        run_id, had = known.run_id, known.state
        # Only new ones are sent, because MLflow does not allow a parameter to change. A run is continued only if at
        # most settings without effect on results differ.
        params = [(name, value[:_PARAM_LENGTH]) for name, value in run.params.items() if name not in had.params]
        self._send(run_id, params=[Param(*item) for item in params])
        self._send(run_id, tags=[RunTag(*item) for item in run.tags.items() if had.tags.get(item[0]) != item[1]])
        if points is None:
            points = [] if run.folder is None else History(self._workspace.folder(run.folder)).points
        self._add_points(known, run, points)
        for name, document in run.documents.items():
            if had.documents.get(name) != document:
                self._client.log_dict(run_id, document, name)
        for file in run.files[len(had.files) :]:
            self._log_file(run_id, file)
        status: str | None = had.status
        if run.model is not None and had.model is None and self._log_model(run_id, run.model, run.experiment):
            status = None  # MLflow ends the run with the upload, at the time of this
        # Last, so that a run which MLflow shows as ended has all the rest (TuningTracker.unsettled relies on it).
        if run.status == "RUNNING" != status:
            # A run that is continued. set_terminated would give it an end, which it does not have yet.
            self._client.update_run(run_id, status=run.status)
        elif run.status != status:
            self._client.set_terminated(run_id, run.status, run.ended_ms)
        known.state = run

    def _continued(self, run: RunState) -> _Recorded:
        """MLflow's run, which is created if it does not exist."""
        found = self._find(run.key, run.experiment)
        if found is None:
            tags = {KEY: run.key}
            if run.parent is not None:
                tags[PARENT] = self._run_id(run.parent, run.experiment)
            experiment = self._experiment_id(run.experiment)
            found = self._client.create_run(experiment, start_time=run.started_ms, run_name=run.name, tags=tags)
        # Documents and files are not asked for, because they replace those of the same name; _log_model asks itself.
        had = {"params": found.data.params, "tags": found.data.tags, "status": found.info.status}
        state = replace(run, **had, documents={}, files=(), model=None)
        self._runs[run.key] = _Recorded(found.info.run_id, state)
        return self._runs[run.key]

    def _run_id(self, key: str, experiment: str) -> str:
        if key in self._runs:
            return self._runs[key].run_id
        found = self._find(key, experiment)
        if found is None:
            raise MlflowException(f"it holds no run with the tag {KEY} = {key}; was it deleted?")
        return str(found.info.run_id)

    def _add_points(self, known: _Recorded, run: RunState, points: Sequence[Point]) -> None:
        if not run.figures and not points:
            return
        if known.points is None:
            # The run itself holds only the last point of each curve.
            had = [
                point
                for name in self._client.get_run(known.run_id).data.metrics
                for point in self._client.get_metric_history(known.run_id, name)
            ]
            had.sort(key=lambda point: point.timestamp)
            known.points = {(point.step, point.key): (point.timestamp, point.value) for point in had}
        now_ms = run.ended_ms or int(time.time() * 1000)
        new = {(step, name): (now_ms, float(value)) for step, metrics in points for name, value in metrics.items()}
        new = {place: point for place, point in new.items() if place not in known.points}
        figures = {(step, name): (at, value) for step, at, metrics in run.figures for name, value in metrics.items()}
        for place, (at, value) in figures.items():
            earlier, before = known.points.get(place, (-1, math.nan))
            # A tuning that is extended may have another result after as many trials; of two points MLflow shows the
            # later one. An older figure comes from the notes of an earlier run.
            if at > earlier and value != before:
                new.setdefault(place, (at, value))
        self._send(known.run_id, metrics=[Metric(name, value, at, step) for (step, name), (at, value) in new.items()])
        known.points.update(new)

    def _send(self, run_id: str, **values: Sequence[Any]) -> None:
        ((kind, items),) = values.items()
        for start in range(0, len(items), _BATCH[kind]):
            self._client.log_batch(run_id, **{kind: items[start : start + _BATCH[kind]]})

    def _log_file(self, run_id: str, file: str) -> None:
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(file).name
            try:
                path.write_bytes(self._workspace.read_bytes(file))
            except FileNotFoundError:
                logger.warning("%s does not exist any more, so its run in MLflow lacks it", self._workspace.place(file))
                return
            self._client.log_artifact(run_id, str(path))

    def _log_model(self, run_id: str, folder: str, experiment: str) -> bool:
        """Logs a model unless that was done before; returns whether it did."""
        from pipelines.models.mlflow_model import requirements, served_model

        for logged in self._client.search_logged_models(
            [self._experiment_id(experiment)], filter_string=f"source_run_id = '{run_id}'"
        ):
            if logged.status == "READY":
                return False
            # An upload that was interrupted.
            self._client.delete_logged_model(logged.model_id)
        if not self._workspace.exists(folder):
            logger.warning("%s does not exist any more, so its run in MLflow lacks it", self._workspace.place(folder))
            return False
        model, signature = served_model(self._workspace.folder(folder))
        with _long_timeout(), mlflow.start_run(run_id=run_id):
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                serialization_format="pickle",
                pip_requirements=requirements(),
            )
        return True

    def _find(self, key: str, experiment: str) -> Run | None:
        found = self._search(experiment, f"tags.`{KEY}` = '{key}'", 1)
        return found[0] if found else None

    def _search(self, experiment: str, condition: str, most: int) -> list[Run]:
        experiments = [self._experiment_id(experiment)]
        return list(self._client.search_runs(experiments, filter_string=condition, max_results=most))

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                # A server chooses the place of artifacts. With a database MLflow would use the current folder, so it is
                # set here.
                location = None if self._is_server else _artifact_uri(self._workspace)
                _require_client(location)
                self._experiments[name] = str(self._client.create_experiment(name, artifact_location=location))
            elif found.lifecycle_stage == "deleted":
                raise StorageError(
                    f"cannot record the run in {shown(self._uri)}: the experiment {name!r} was deleted there. Name "
                    "another one with --tracking.experiment, or restore it: "
                    f"MLFLOW_TRACKING_URI={shlex.quote(shown(self._uri))} mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}"
                )
            else:
                self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Turns what MLflow raises into ``StorageError``."""
        try:
            yield
        except StorageError:
            raise
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # The message may repeat the address with its credentials.
            text = str(error).replace(self._uri.rstrip("/"), shown(self._uri)).strip() or type(error).__name__
            message = f"cannot record the run in {shown(self._uri)}: {text.splitlines()[0][:300]}"
            if self._is_server and _is_away(error):
                raise AwayError(message) from error
            raise StorageError(
                f"{message}. Make room there, or check that it can be reached, and run the same command again: what "
                "is finished is kept"
            ) from error


@contextmanager
def _long_timeout() -> Iterator[None]:
    """Sets a long timeout for the answer to an upload, unless the user has set one."""
    if os.environ[_TIMEOUT] != _PATIENCE[_TIMEOUT]:
        yield
        return
    os.environ[_TIMEOUT] = _UPLOAD_TIMEOUT_S
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = _PATIENCE[_TIMEOUT]


def _is_away(error: BaseException | None) -> bool:
    """Whether a server does not answer, or answers with an error of its own."""
    while error is not None:
        # First, because it is a ConnectionError, too; but a certificate that is refused stays refused.
        if isinstance(error, requests.exceptions.SSLError):
            return False
        if isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError)):
            return True
        if isinstance(error, RestException) and error.get_http_status_code() in _TROUBLE:
            return True
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return error.response.status_code in _TROUBLE
        # MLflow raises an exception of its own where it catches that of requests, often without naming it as the cause.
        error = error.__cause__ or error.__context__
    return False


def _artifact_uri(workspace: Storage) -> str:
    folder = workspace.folder("mlartifacts")
    return Path(folder.path()).as_uri() if folder.is_local else folder.uri


def _require_client(location: str | None) -> None:
    """Raises ``ValueError`` if MLflow cannot write there, which it would notice only at the end of a stage."""
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
