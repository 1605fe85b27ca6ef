"""An empty database of MLflow, made once in a process: its tables take seconds, a copy does not."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import mlflow.store.db.utils as database_utils
from mlflow.tracking import MlflowClient

# Whoever opens a database compares its version with MLflow's newest, for which MLflow loads some seventy modules anew.
database_utils._get_latest_schema_revision = cache(database_utils._get_latest_schema_revision)


@cache
def _empty_database() -> Path:
    # Kept to the end of the process, whichever test needed it first.
    folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
    path = folder / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def copy_database(workspace: Path) -> None:
    """Puts an empty database where a run in ``workspace`` looks for one, if there is none."""
    workspace.mkdir(parents=True, exist_ok=True)
    if not (workspace / "mlflow.db").exists():
        shutil.copy(_empty_database(), workspace / "mlflow.db")
