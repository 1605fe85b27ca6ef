"""Environment, shape checks and the local Ray of all tests.

Ray and PyTorch read their switches when they are imported, and shape annotations are executed
only in modules that are imported after the hook: this file does both before any test module.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
from xdist.scheduler import LoadScopeScheduling

# Every call of a public function of the models checks the shapes in its signature.
jaxtyping.install_import_hook(["hbi_models"], "beartype.beartype")

from pipelines.resources.ray_session import set_ray_environment  # noqa: E402 - after the hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Runs that a test starts are recorded in that test's own workspace.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
set_ray_environment()


RUN_RAY = (
    "tests/jobs/",
    "tests/distributed/",
    "tests/faults/test_processes.py",
    "tests/faults/test_ray_neighbours.py",
    "tests/faults/test_whole_runs.py",
    "tests/pipelines/evaluate/test_ranked.py",
    "tests/pipelines/resources/test_allotment.py",
    "tests/pipelines/stages/test_pooled.py",
    "tests/pipelines/test_run.py",
)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Spreads files over processes; those that run Ray go to one, one after another."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(RUN_RAY) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _logging() -> None:
    """Takes away what jobs that ran in this process log to: files and streams that are gone."""
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """Ray on this machine, started once; ``ray_session`` finds it and leaves it running."""
    import ray

    # Socket paths are limited to 107 bytes, so pytest's own temporary folders are too deep.
    folder = tempfile.mkdtemp(prefix="ray-")
    # More CPUs than the machine may have: two workers and the tasks beside them must fit.
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=folder,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
