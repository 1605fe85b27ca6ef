"""Where runs are recorded: the address of MLflow's server or database."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlparse

from pipelines.workspace.storage import Storage

VARIABLE = "MLFLOW_TRACKING_URI"

_DATABASE_PREFIX = "sqlite:///"
_WITHOUT_SCHEME = ("databricks", "databricks-uc")
"""Addresses of MLflow that have no scheme but are not paths."""


def tracking_uri(workspace: Storage) -> str:
    """``MLFLOW_TRACKING_URI``, or a SQLite file in the workspace.

    A workspace in an object store cannot hold a database; the file is then ``mlflow.db`` in the
    folder the command was started in.

    Raises:
        ValueError: the variable names a folder, or MLflow would read the path of its database differently.
    """
    given = os.environ.get(VARIABLE)
    if given:
        _require_no_folder(given)
        _require_place_as_written(given)
        return given
    folder = Path(workspace.path()) if workspace.is_local else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    return sqlite_uri(folder / "mlflow.db")


def is_server(uri: str) -> bool:
    """Whether MLflow's address names a server, which a workspace of Databricks is, too; otherwise a database."""
    return urlparse(uri).scheme in ("http", "https", "databricks") or uri in _WITHOUT_SCHEME


def ui_command(workspace: Storage) -> str:
    """The command that shows the runs of ``workspace`` in a browser."""
    uri = tracking_uri(workspace)
    command = ["mlflow", "ui", "--host", "127.0.0.1", "--backend-store-uri", uri]
    return f"open {uri}" if is_server(uri) else shlex.join(command)


def sqlite_uri(path: Path) -> str:
    """The address of the SQLite file at the absolute ``path``, whatever characters it holds.

    Raises:
        ValueError: this release of SQLAlchemy has no address for it.
    """
    from sqlalchemy.engine import URL, make_url

    plain = f"{_DATABASE_PREFIX}{path}"
    if make_url(plain).database == str(path):
        return plain
    # With the driver's name, because otherwise MLflow makes a folder whose name is the quoted path.
    quoted = URL.create("sqlite+pysqlite", database=str(path)).render_as_string()
    if make_url(quoted).database != str(path):
        raise ValueError(
            f"{path} cannot be written as the address of a database; set {VARIABLE} to a server or a database "
            "elsewhere, or choose a workspace without ? in its path"
        )
    return quoted


def _require_no_folder(given: str) -> None:
    # MLflow refuses folders, too, unless this is set.
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if urlparse(given).scheme in ("", "file") and given not in _WITHOUT_SCHEME and not allowed:
        path = Path(urlparse(given).path).absolute()
        raise ValueError(
            f"{VARIABLE} is {given!r}, a folder; MLflow needs a server or a database. Set it to http://HOST:PORT or to "
            f"{sqlite_uri(path / 'mlflow.db')}, or unset it: runs then go to mlflow.db in the workspace. "
            "`mlflow migrate-filestore` takes the runs of an old folder along"
        )


def _require_place_as_written(given: str) -> None:
    if not given.startswith(_DATABASE_PREFIX):
        return
    from sqlalchemy.engine import make_url

    written, read = Path(given.removeprefix(_DATABASE_PREFIX)), make_url(given).database
    # A folder of that name is there, so it was meant literally.
    if written.parent.is_dir() and read and written.parent != Path(read).parent:
        raise ValueError(
            f"{VARIABLE} is {given!r}, which names the file {read!r}: in an address ? and % of a path are written "
            f"%3F and %25. Set it to {sqlite_uri(written.absolute())}"
        )
