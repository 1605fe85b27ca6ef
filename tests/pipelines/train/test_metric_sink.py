from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.train.history import Point
from pipelines.train.metric_sink import fetch, start_sink
from tests.jobs.killing import wait_until, workers_at


@pytest.mark.fault
def test_a_sink_that_is_killed_starts_again_and_ends_no_training(ray_local: Any) -> None:
    received: list[Point] = []
    sink = start_sink()
    ray_local.get(sink.put.remote([(1, {"train/loss": 1.0})]))
    fetch(sink, received.extend)
    (process,) = workers_at("MetricSink")
    ray_local.get(sink.put.remote([(2, {"train/loss": 0.5})]))
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{process}").exists(), alive=lambda: True)
    # What was in it is lost; the checkpoints have it.
    fetch(sink, received.extend)
    ray_local.get(sink.put.remote([(3, {"train/loss": 0.25})]))
    fetch(sink, received.extend)
    assert [step for step, _ in received] == [1, 3]
    ray_local.kill(sink)
