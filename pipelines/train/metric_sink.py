"""How curves travel from training workers to the driver.

A small actor keeps points until the driver fetches them. The driver alone writes to MLflow and
to the log, so no database has more than one writer and no node needs to reach one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.storage import Storage
from pipelines.train.layout import HISTORY

logger = logging.getLogger(__name__)

Point = tuple[int, Mapping[str, float]]

POLL_S = 1.0
"""Seconds between two looks into the sink."""


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


class History:
    """All points of a training stage, kept beside its checkpoints; a restart goes on with it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._points: list[Point] = []
        if storage.exists(HISTORY):
            lines = storage.read_bytes(HISTORY).decode().splitlines()
            self._points = [(record.pop("step"), record) for record in map(json.loads, lines)]

    @property
    def points(self) -> list[Point]:
        """All points, in the order in which they came."""
        return list(self._points)

    def latest(self, prefix: str) -> dict[str, float]:
        """The last value of every metric whose name starts with ``prefix``."""
        ordered = sorted(self._points, key=lambda point: point[0])
        return {name: value for _, metrics in ordered for name, value in metrics.items() if name.startswith(prefix)}

    def extend(self, points: list[Point]) -> None:
        """Adds points and commits the file; a step that is done again replaces the old point."""
        if not points:
            return
        again = {(step, name) for step, metrics in points for name in metrics}
        kept = [
            (step, {name: value for name, value in metrics.items() if (step, name) not in again})
            for step, metrics in self._points
        ]
        self._points = [point for point in kept if point[1]] + points
        text = "".join(json.dumps({"step": step, **metrics}) + "\n" for step, metrics in self._points)
        self._storage.write_bytes(HISTORY, text.encode())


def start_sink() -> Any:
    """A sink on this node: it lives as long as the process that fetches from it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return MetricSink.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def fetch(sink: Any, receive: Callable[[list[Point]], None]) -> None:
    """Hands on what is in the sink, in the caller's thread."""
    points = ray.get(sink.take.remote())
    if points:
        receive(points)
