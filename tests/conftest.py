"""Environment, shape checks and the local Ray of all tests.

Ray and PyTorch read their switches when they are imported, and shape annotations are executed
only in modules that are imported after the hook: this file does both before any test module.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import jaxtyping
import pytest

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
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


STARTS_RAY = (
    "tests/jobs/",
    "tests/distributed/",
    "tests/serve/",
    "tests/faults/test_processes.py",
    "tests/faults/test_ray_neighbours.py",
    "tests/faults/test_whole_runs.py",
)
"""Tests that start processes of their own which start Ray, or train in several processes."""

LONGEST_FIRST = (
    "tests/jobs/test_tune.py",
    "tests/jobs/test_pipeline.py",
    "tests/serve/",
    "tests/jobs/test_video_qa.py",
    "tests/jobs/test_interruption.py",
    "tests/jobs/test_datasets.py",
    "tests/jobs/",
    "tests/parity/test_trajectory.py",
    "tests/distributed/",
    "tests/faults/",
    "tests/",
)
"""So that two processes end at about the same time."""


SHARE_RAY = (
    "tests/jobs/test_tune.py",
    "tests/serve/",
    "tests/pipelines/resources/",
    "tests/pipelines/stages/test_pooled.py",
    "tests/pipelines/train/test_metric_sink.py",
)
TOGETHER = (("tests/distributed/",), SHARE_RAY)
"""Files that share a process from which others are copied, or the Ray of ``ray_local``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts Ray, and puts the longest files first."""
    for item in items:
        if item.nodeid.startswith(STARTS_RAY) or "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: next(n for n, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps Python's garbage collector away from the 700,000 objects of imported libraries.

    It looks through them again and again while they are imported, a fifth of that time, and then during the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process does whole files, as with ``--dist loadfile``; those of a group in ``TOGETHER`` as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None

    class Together(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            group = next((files for files in TOGETHER if nodeid.startswith(files)), None)
            return group[0] if group else super()._split_scope(nodeid)

    return Together(config, log)


def pytest_configure_node(node: Any) -> None:
    """Tells a process whether it does whole files."""
    node.workerinput["by_file"] = node.config.getoption("dist") == "loadfile"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stops the Ray of ``ray_local`` behind the last of the files that share it: idle, it takes a tenth of a core."""
    by_file = getattr(item.config, "workerinput", {}).get("by_file")
    if by_file and item.nodeid.startswith(SHARE_RAY) and nextitem and not nextitem.nodeid.startswith(SHARE_RAY):
        import ray

        ray.shutdown()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> None:
    """Takes away what tests before left in this process: the server that MLflow exports, logs that are gone."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
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
