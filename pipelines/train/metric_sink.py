"""How curves travel from training workers to the driver.

A small actor keeps points until the driver fetches them. The driver alone writes to MLflow and
to the log, so no database has more than one writer and no node needs to reach one.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from pipelines.storage import Storage
from pipelines.train.layout import HISTORY

logger = logging.getLogger(__name__)

Point = tuple[int, Mapping[str, float]]

_POLL_S = 1.0


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


class SinkPump:
    """Fetches points from the sink in a thread until it is closed, and hands them on."""

    def __init__(self, sink: Any, receive: Callable[[list[Point]], None]) -> None:
        self._sink, self._receive = sink, receive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-sink", daemon=True)

    def __enter__(self) -> SinkPump:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._fetch()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._fetch()

    def _fetch(self) -> None:
        points = ray.get(self._sink.take.remote())
        if points:
            self._receive(points)
