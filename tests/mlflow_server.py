"""An MLflow server as cluster/mlflow starts it, but for its database; it can be killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.ray_nodes import free_ports, wait_for
from tests.jobs.killing import descendants, wait_until_gone


class MlflowServer:
    """A server on a free port of loopback that keeps its database in ``folder``; not started yet.

    Args:
        folder: for its database and its log.
        artifacts: where it keeps artifacts, a folder or a URI.
    """

    def __init__(self, folder: Path, artifacts: str) -> None:
        self._folder, self._artifacts = folder, artifacts
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it, unless it runs, and waits until it answers."""
        if self._process is not None:
            return
        line = [str(Path(sys.executable).parent / "mlflow"), "server", "--host=127.0.0.1", f"--port={self._port}"]
        line += ["--workers=1", f"--backend-store-uri=sqlite:///{self._folder}/server.db"]
        with (self._folder / "server.log").open("ab") as log:
            # A group of its own, because it ends by a signal to all of its processes.
            self._process = subprocess.Popen(
                [*line, f"--artifacts-destination={self._artifacts}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Without it, seven more processes look for jobs of MLflow's own.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        wait_for(self._answers, "the MLflow server", timeout_s=300)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """Kills it, if it runs."""
        if self._process is not None:
            workers = descendants(self._process.pid)
            self._signal(signal.SIGKILL)
            self._process.wait()
            assert not wait_until_gone(workers, timeout_s=20)
            self._process = None

    def hang(self) -> None:
        """From now on it accepts connections, and never answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends the hanging."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "it was not started"
        os.killpg(self._process.pid, number)


@contextmanager
def mlflow_server(folder: Path, artifacts: str) -> Iterator[MlflowServer]:
    """A server that runs, and is gone afterwards."""
    server = MlflowServer(folder, artifacts)
    try:
        server.start()
        yield server
    finally:
        server.kill()
