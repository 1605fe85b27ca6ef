"""One Ray for a whole run: the cluster that is there, or a local one.

Set the environment before Ray is imported: several of its switches are read only then.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pipelines.recipe.resources import ActorResources, ResourcesConfig, TaskResources, TrainResources
from pipelines.resources.ray_leftovers import keep_session_folder, make_session_folder, remove_dead_sessions

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The newer Parquet reader costs seconds per execution on small data.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # The controller polls the workers at this interval; the default of 2 s delays every
    # checkpoint and loses the last one when a worker dies.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray leaves CUDA_VISIBLE_DEVICES alone in a process that gets no GPU; compute_device asks Ray what it gave.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Training workers and trials stay in the folder of the command, which relative paths of a recipe start from.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


_LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # Despite its name this works on Linux, too: Ray then uses 127.0.0.1 as this machine's address, so that all of its
    # servers listen there instead of on every network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Nobody tells a Ray of one machine that this will be taken away, and watching for it takes a process.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""For a Ray that this process starts, on this machine alone."""

_DASHBOARD = "RAY_API_SERVER_ADDRESS"

_THREADS = "OMP_NUM_THREADS"

_ANSWER_S = 10.0
"""Seconds to wait for a connection to a cluster."""

_fixed = False
"""Whether the connected Ray was started here: no node will ever join it."""


def set_ray_environment() -> None:
    """Sets the switches that Ray reads when it is imported; what is set already stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(resources: ResourcesConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Connects to the configured or surrounding cluster, or starts a local Ray and stops it.

    A local Ray listens on loopback with token authentication, its dashboard is off, and nothing is
    written to the home directory.

    Raises:
        ConnectionError: nothing answers at the address of the cluster.
    """
    set_ray_environment()
    # An empty RAY_ADDRESS counts as unset. Ray itself would take it for a cluster without an address.
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.pop("RAY_ADDRESS", None)
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Without a token in the environment Ray would write one to ~/.ray.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    # It belongs to whoever started it, who also stops it.
    if ray.is_initialized():
        yield
        return
    with _connected(address) if address else _started_here(resources, dashboard):
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    require_answer(address)
    with _keeping_the_end():
        ray.init(address=address, log_to_driver=False)
    logger.info("Ray: connected to %s", address)
    try:
        yield
    finally:
        ray.shutdown()


def require_answer(address: str) -> None:
    """Tests whether the cluster's address answers: Ray itself would wait for a dead cluster without a message.

    Raises:
        ConnectionError: nothing answers there.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # a word such as "auto", which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start it, correct RAY_ADDRESS or "
            "resources.ray_address, or unset both to run on a local Ray"
        ) from error


@contextmanager
def _started_here(resources: ResourcesConfig, dashboard: bool) -> Iterator[None]:
    import ray

    remove_dead_sessions()
    folder = make_session_folder()
    with _keeping_the_end(), _dashboard_that_workers_find() if dashboard else nullcontext() as port:
        ray.init(
            num_cpus=resources.local_cpus,
            include_dashboard=dashboard,
            dashboard_port=port,
            object_store_memory=int(resources.local_object_store_gb * 1e9),
            log_to_driver=False,
            logging_level="warning",
            _temp_dir=str(folder),
        )
    # Not before: Ray gives a worker as many threads as CPUs, unless the variable is set when it starts. This process
    # computes beside them. Not for longer either: the next Ray of this process would start with it.
    threads = os.environ.get(_THREADS)
    os.environ.setdefault(_THREADS, "1")
    logger.info("Ray: started on this machine with %g CPUs", ray.cluster_resources().get("CPU", 0))
    global _fixed
    finished, _fixed = False, True
    try:
        yield
        finished = True
    finally:
        _fixed = False
        if threads is None:
            os.environ.pop(_THREADS, None)
        ray.shutdown()
        # After a failure the logs of the workers stay.
        if finished:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            keep_session_folder(folder)
            logger.info("Ray: the logs of its workers are in %s", folder)


@contextmanager
def _dashboard_that_workers_find() -> Iterator[int]:
    """A port for the dashboard of a Ray that is started inside the context; its workers are told the address.

    By themselves they look for the only Ray of the machine, and fail if there are several.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    before = os.environ.get(_DASHBOARD)
    os.environ[_DASHBOARD] = f"http://127.0.0.1:{port}"
    try:
        yield port
    finally:
        if before is None:
            del os.environ[_DASHBOARD]
        else:
            os.environ[_DASHBOARD] = before


@contextmanager
def _keeping_the_end() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM: Ray's own ends the process before a run can record that it was
    stopped."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    # Python sets handlers in the main thread alone. The default action is not callable, and is not kept.
    if is_main and callable(handler):
        signal.signal(signal.SIGTERM, handler)


def ray_options(cpus: float, gpus: float, memory_gb: float | None) -> dict[str, Any]:
    """What one task, actor or worker asks Ray for."""
    options: dict[str, Any] = {"num_cpus": cpus}
    if gpus:
        options["num_gpus"] = gpus
    if memory_gb is not None:
        options["memory"] = int(memory_gb * 1e9)
    return options


def works_here(resources: TaskResources | ActorResources) -> bool:
    """Whether the process of the command does the work itself."""
    return (resources.max_actors if isinstance(resources, ActorResources) else resources.max_tasks) == 0


def actors_that_fit(resources: ActorResources) -> tuple[float, int]:
    """GPUs of one actor, and the most actors at once, on the connected cluster."""
    gpus = resources.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if cluster_gpus() >= 1 else 0.0
    if resources.max_actors is not None:
        return gpus, resources.max_actors
    wanted = ((cluster_gpus(), gpus), (cluster_cpus(), resources.cpus_per_actor))
    # An actor may ask for no CPU or no GPU, which then sets no limit.
    limits = [there / each for there, each in wanted if each]
    if resources.memory_gb_per_actor:
        limits.append(cluster_memory_gb() / resources.memory_gb_per_actor)
    return gpus, max(resources.min_actors, int(min(limits, default=1)))


def worker_gpus(resources: TrainResources) -> float:
    """GPUs of one training worker on the connected cluster."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return 1.0 if cluster_gpus() >= max(1, resources.workers) else 0.0


def is_fixed() -> bool:
    """Whether the connected Ray stays as large as it is: one that was started here, for this run."""
    return _fixed


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return _cluster("GPU", 0)


def cluster_cpus() -> float:
    """CPUs of the connected cluster."""
    return _cluster("CPU", 1)


def cluster_memory_gb() -> float:
    """Memory of the connected cluster that tasks may ask for, in GB."""
    return _cluster("memory", 0) / 1e9


def _cluster(resource: str, default: float) -> float:
    import ray

    return float(ray.cluster_resources().get(resource, default))
