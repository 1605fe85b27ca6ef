"""Trains in the calling process, which holds the resources of one worker, such as a trial of a tuning.

Ray's trainer would first start a controller and a worker of its own, which takes 28 s instead of 3 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipelines.train.history import Point
from pipelines.train.loop import LoopSettings, Task, TrainingLoop
from pipelines.train.trial_host import CheckpointPlace

_FLUSH_S = 1.0


class _PlaceReporter:
    """Keeps checkpoints, and passes points on. The points before a checkpoint are passed on after it is kept."""

    def __init__(self, place: CheckpointPlace, receive: Callable[[list[Point]], None]) -> None:
        self._place, self._receive = place, receive
        self._points: list[Point] = []
        self._flushed = time.monotonic()

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        # Before the new point is added: who receives a validation may end this process (Tune does), so it is passed on
        # with its checkpoint, after that is kept.
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self.flush()
        self._points.append((step, dict(metrics)))

    def checkpoint(self, folder: Path | None, score: float) -> None:
        assert folder is not None, "there is one rank, the first"
        self._place.keep(folder, score)
        self.flush()

    def flush(self) -> None:
        """Passes on the points that are waiting."""
        points, self._points = self._points, []
        self._flushed = time.monotonic()
        if points:
            self._receive(points)


def train_in_place(
    task: Task[Any],
    *,
    device: torch.device,
    settings: LoopSettings,
    place: CheckpointPlace,
    receive: Callable[[list[Point]], None],
) -> list[Point]:
    """Trains from the latest checkpoint in ``place``, or from the start, to the end; returns the whole curve.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    reporter = _PlaceReporter(place, receive)
    with TemporaryDirectory() as scratch:
        latest = place.latest(Path(scratch))
        loop = TrainingLoop(task, device=device, reporter=reporter, settings=settings, resume=latest)
    try:
        loop.run()
    finally:
        reporter.flush()
    return loop.curve
