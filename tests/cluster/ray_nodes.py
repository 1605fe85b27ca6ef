"""Ray clusters of several nodes on this machine, started as people start them: by ``ray start``."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.jobs.killing import descendants, kill, wait_until_gone

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class RayCluster:
    """A head, whose dashboard takes jobs, and the nodes that were added."""

    folder: Path
    environment: dict[str, str]
    dashboard_port: int
    gcs_port: int
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def ray(self, *arguments: str, check: bool = False, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Ray's own command line, with what a submitting user has in the environment."""
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            env={**self.environment, "RAY_API_SERVER_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def client(self) -> Any:
        """Ray's client for jobs."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.address, headers=self._headers)

    def latest_job(self) -> Any:
        """Ray's details of the job that was submitted last; it lists jobs in any order."""
        return max(self.client().list_jobs(), key=lambda job: job.start_time)

    def start(self, *options: str, before: Sequence[str] = ()) -> None:
        """Starts a node; ``before`` is a command that runs it, such as in a name space of its own."""
        line = [*before, str(BIN / "ray"), "start", *options, "--block", "--disable-usage-stats"]
        line += ["--object-store-memory", str(150 * 2**20), "--min-worker-port", "0", "--max-worker-port", "0"]
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        self.nodes.append(subprocess.Popen(line, env=self.environment, stdout=log, stderr=subprocess.STDOUT))

    def add_node(self, *, num_cpus: int, before: Sequence[str] = ()) -> None:
        """Adds a node and waits until the head knows it."""
        self.start(
            *("--address", f"127.0.0.1:{self.gcs_port}", "--num-cpus", str(num_cpus)),
            # On a machine of its own it would not unpack a job's code over that of the head.
            *("--temp-dir", str(self.folder / f"node{len(self.nodes)}")),
            before=before,
        )
        self.wait_for_nodes(sum(node.poll() is None for node in self.nodes))

    def lose_node(self, number: int) -> None:
        """Kills all that runs on a node at once, as a machine that loses its power; the head is number 0."""
        node = self.nodes[number]
        for pid in (node.pid, *descendants(node.pid)):
            kill(pid)
        node.wait()

    def wait_for_nodes(self, count: int, *, timeout_s: float = 240) -> None:
        """Returns when ``count`` nodes are alive."""
        wait_for(lambda: len(self.alive_nodes()) >= count, f"{count} nodes", timeout_s=timeout_s)

    def alive_nodes(self) -> list[dict[str, Any]]:
        """What the head says of the nodes that are alive."""
        with suppress(OSError):  # the dashboard may still be starting
            return [node for node in self.state("nodes") if node["state"] == "ALIVE"]
        return []

    def state(self, kind: str, **filters: str) -> list[dict[str, Any]]:
        """Rows of Ray's state API: ``nodes``, ``actors``, ``tasks``, …, those with the given values."""
        query = [("limit", "10000"), ("detail", "1")]
        for name, value in filters.items():
            query += [("filter_keys", name), ("filter_predicates", "="), ("filter_values", value)]
        request = urllib.request.Request(
            f"{self.address}/api/v0/{kind}?{urllib.parse.urlencode(query)}", headers=self._headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]["result"]["result"]  # type: ignore[no-any-return]

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float) -> None:
    """Returns when ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.2)


@contextmanager
def ray_cluster(
    *, num_cpus: int, environment: Mapping[str, str] | None = None, more_cpus: Sequence[int] = ()
) -> Iterator[RayCluster]:
    """A cluster whose head has ``num_cpus``, and further nodes with ``more_cpus``; all of it is gone afterwards."""
    with ExitStack() as stack:
        # Socket paths are limited to 107 bytes.
        folder = Path(stack.enter_context(_scratch()))
        scratch = folder / "scratch"
        scratch.mkdir()
        ports = free_ports(4)
        cluster = RayCluster(
            folder,
            {
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                **(environment or {}),
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "TMPDIR": str(scratch),
            },
            dashboard_port=ports[0],
            gcs_port=ports[1],
        )
        stack.callback(_stop, cluster)
        cluster.start(
            *("--head", "--num-cpus", str(num_cpus), "--temp-dir", str(folder / "ray")),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports[0]), "--port", str(ports[1])),
            *("--dashboard-agent-listen-port", str(ports[2]), "--ray-client-server-port", str(ports[3])),
        )
        cluster.wait_for_nodes(1)
        for cpus in more_cpus:
            cluster.add_node(num_cpus=cpus)
        yield cluster


@contextmanager
def _scratch() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="rays-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(cluster: RayCluster) -> None:
    started = {pid for node in cluster.nodes for pid in (node.pid, *descendants(node.pid))}
    for node in cluster.nodes:
        node.send_signal(signal.SIGTERM)
    left = wait_until_gone(started - {node.pid for node in cluster.nodes}, timeout_s=20)
    for pid in left:
        kill(pid)
    for node in cluster.nodes:
        with suppress(subprocess.TimeoutExpired):
            node.wait(10)
        node.kill()
        node.wait()


def free_ports(count: int) -> list[int]:
    """Ports outside of those that Ray gives to its workers and the system to clients."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("0.0.0.0", port))
            found.append(port)
    return found
