from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from pipelines import progress
from pipelines.progress import Progress, format_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test turns."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="progress")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7530, "2 h 05 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_line_tells_the_rate_and_the_time_left(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("frames", total=1200, unit="videos", log_every_s=10) as work:
        clock.now += 20
        work.advance(400, "12.0 frames each")
        assert caplog.messages == ["frames: 400/1,200 videos, 20/s, 40 s left, 12.0 frames each"]


def test_lines_come_at_intervals(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("frames", total=100, unit="videos", log_every_s=10) as work:
        for _ in range(25):
            clock.now += 1
            work.advance()
        assert [message.split(",")[0] for message in caplog.messages] == [
            "frames: 10/100 videos",
            "frames: 20/100 videos",
        ]


def test_work_of_an_earlier_run_counts_as_done_but_not_as_speed(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("frames", total=1000, unit="videos", done=800) as work:
        clock.now += 10
        work.advance(50)
    assert caplog.messages == [
        "frames: 800 of 1,000 videos were done before",
        "frames: 850/1,000 videos, 5/s, 30 s left",
        "frames: 850/1,000 videos, 5/s, 30 s left",
    ]


def test_finished_work_has_no_time_left_and_failed_work_no_last_line(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("labels", total=4, unit="videos") as work:
        clock.now += 2
        work.advance_to(4)
    assert caplog.messages == ["labels: 4/4 videos, 2/s"]
    with pytest.raises(RuntimeError), Progress("labels", total=4, unit="videos"):
        raise RuntimeError("lost")
    assert len(caplog.messages) == 1


def test_positions_may_be_told_instead_of_differences(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("retrieval", total=30, unit="steps", done=10) as work:
        for step in (15, 20, 20):
            clock.now += 1
            work.advance_to(step)
    assert caplog.messages[-1] == "retrieval: 20/30 steps, 2.5/s, 4 s left"


def test_the_start_of_workers_does_not_count_as_speed(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("retrieval", total=100, unit="steps") as work:
        clock.now += 60
        work.advance(10)
        clock.now += 10
        work.advance(10)
    assert caplog.messages[-1] == "retrieval: 20/100 steps, 1/s, 1 min 20 s left"
