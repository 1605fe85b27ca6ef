"""A Ray cluster of several nodes on loopback, in a process of its own.

Nodes come and go in that process, because Ray wants this in a main thread, and its switches are
read when it is imported. What a node does is seen in the process table: the workers of a node are
children of its raylet, and Ray gives them the names of what they run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tests.jobs.killing import descendants, kill, workers_at

_ENVIRONMENT = {
    # Ray notices a dead node after three seconds instead of thirty.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}


@dataclass
class Node:
    """A node of the cluster; ``raylet`` is the process that all of its workers descend from."""

    number: int
    raylet: int

    def workers_at(self, work: str) -> set[int]:
        """The node's workers that are at something with ``work`` in its name."""
        return workers_at(work, below=self.raylet)


@dataclass
class LoopbackCluster:
    """A running cluster, whose first node is the head."""

    address: str
    logs: Path
    """Where Ray and its workers write their logs."""
    nodes: list[Node]
    _to: TextIO = field(repr=False)
    _from: TextIO = field(repr=False)

    def add_node(self, *, cpus: int) -> Node:
        """Starts another node and waits until the cluster knows it."""
        node = Node(**self._ask({"add": cpus}))
        self.nodes.append(node)
        return node

    def remove_node(self, node: Node) -> None:
        """Takes a node away without a word, and all that runs on it, as a machine that loses its power."""
        workers = descendants(node.raylet)
        self._ask({"remove": node.number})
        for pid in workers:
            kill(pid)
        self.nodes.remove(node)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(question), file=self._to, flush=True)
        return dict(json.loads(self._from.readline()))


@contextmanager
def loopback_cluster(*cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[LoopbackCluster]:
    """A cluster with a node for each of ``cpus``; the driver is to connect to its ``address``."""
    # Socket paths are limited to 107 bytes, so pytest's own temporary folders are too deep.
    folder = tempfile.mkdtemp(prefix="c-")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **_ENVIRONMENT, **(environment or {}), "RAY_TMPDIR": folder},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        logs = Path(folder) / "ray" / "session_latest" / "logs"
        cluster = LoopbackCluster("", logs, [], process.stdin, process.stdout)
        for count in cpus:
            cluster.add_node(cpus=count)
        cluster.address = str(cluster._ask({"address": None})["address"])
        yield cluster
    finally:
        started = descendants(process.pid)
        process.stdin.close()
        process.wait(timeout=60)
        for pid in started:
            kill(pid)
        shutil.rmtree(folder, ignore_errors=True)


def _serve() -> None:
    """Answers the questions on standard input until it is closed."""
    from ray.cluster_utils import Cluster

    answers, sys.stdout = sys.stdout, sys.stderr
    cluster, nodes = Cluster(), {}
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {}
        if "add" in question:
            node = cluster.add_node(
                num_cpus=question["add"], object_store_memory=100 * 2**20, include_dashboard=False, wait=True
            )
            nodes[len(nodes)] = node
            answer = {"number": len(nodes) - 1, "raylet": node.all_processes["raylet"][0].process.pid}
        elif "remove" in question:
            cluster.remove_node(nodes[question["remove"]], allow_graceful=False)
        else:
            answer = {"address": cluster.address}
        print(json.dumps(answer), file=answers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
