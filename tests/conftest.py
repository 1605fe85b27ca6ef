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
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Every call of a public function of the models checks the shapes in its signature.
jaxtyping.install_import_hook(["hbi_models"], "beartype.beartype")

from pipelines.ray_session import set_ray_environment  # noqa: E402 - after the hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Runs that a test starts are recorded in that test's own workspace.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
set_ray_environment()


RUN_RAY = (
    "jobs",
    "distributed",
    "faults/test_processes.py",
    "faults/test_ray_neighbours.py",
    "faults/test_whole_runs.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where pytest-xdist spreads the tests: a file stays together, and what runs Ray runs one after another."""
    folder = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(folder).as_posix()
        runs_ray = name.startswith(RUN_RAY) or "ray_local" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if runs_ray else name))


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
