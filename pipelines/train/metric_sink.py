"""How curves travel from training workers to the driver.

A small actor keeps points until the driver fetches them. The driver alone writes to MLflow and
to the log, so no database has more than one writer and no node needs to reach one.

This serves to watch a training: points on their way are lost if the driver or the actor dies. Every checkpoint holds
the curve up to it, and at the end the history is completed from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.train.history import Point

POLL_S = 1.0
"""Seconds between two fetches."""


# Without a CPU of its own, so that it fits beside a training that has all of them.
@ray.remote(num_cpus=0)
class MetricSink:
    """Keeps (step, metrics) points until they are fetched."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def put(self, points: list[Point]) -> None:
        """Adds points."""
        self._points.extend(points)

    def take(self) -> list[Point]:
        """Removes and returns all points."""
        points, self._points = self._points, []
        return points


def start_sink() -> Any:
    """A sink on this node. It lives as long as the process that fetches from it, and is restarted if it dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Retried calls may add a point twice, which the history holds once.
    return MetricSink.options(  # type: ignore[attr-defined]
        scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
    ).remote()


def fetch(sink: Any, receive: Callable[[list[Point]], None]) -> None:
    """Passes on the points in the sink, in the caller's thread."""
    points = ray.get(sink.take.remote())
    if points:
        receive(points)
