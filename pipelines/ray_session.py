"""One Ray for a whole run: the cluster that is there, or a local one.

Set the environment before Ray is imported: several of its switches are read only then.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.configs import ActorResources, ResourcesConfig

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The newer Parquet reader costs seconds per execution on small data.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # The controller polls the workers at this interval; the default of 2 s delays every
    # checkpoint and loses the last one when a worker dies.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_ray_environment() -> None:
    """Sets the switches that Ray reads when it is imported; what is set already stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(resources: ResourcesConfig) -> Iterator[None]:
    """Connects to the configured or surrounding cluster, or starts a local Ray and stops it.

    A local Ray listens with token authentication, its dashboard is off, and nothing is written
    to the home directory.
    """
    set_ray_environment()
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    with _connected(address) if address else _started_here(resources):
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, log_to_driver=False)
    logger.info("Ray: connected to %s", address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _started_here(resources: ResourcesConfig) -> Iterator[None]:
    import ray

    # Socket paths are limited to 107 bytes, so Ray's folder lies under the system's own.
    folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        num_cpus=resources.local_cpus,
        include_dashboard=False,
        object_store_memory=int(resources.local_object_store_gb * 2**30),
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=folder,
    )
    logger.info("Ray: started on this machine with %g CPUs", ray.cluster_resources().get("CPU", 0))
    finished = False
    try:
        yield
        finished = True
    finally:
        ray.shutdown()
        if finished:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            logger.info("Ray: the logs of its workers are in %s", folder)


def actors_that_fit(resources: ActorResources) -> tuple[float, int]:
    """GPUs of one actor, and the most actors at once, on the connected cluster."""
    gpus = resources.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if cluster_gpus() >= 1 else 0.0
    if resources.max_actors is not None:
        return gpus, resources.max_actors
    limits = [cluster_gpus() / gpus] if gpus else []
    limits += [cluster_cpus() / resources.cpus_per_actor] if resources.cpus_per_actor else []
    return gpus, max(1, int(min(limits, default=1)))


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def cluster_cpus() -> float:
    """CPUs of the connected cluster."""
    import ray

    return float(ray.cluster_resources().get("CPU", 1))
