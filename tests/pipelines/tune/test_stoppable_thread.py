from __future__ import annotations

import logging
import threading
import time

import pytest

from pipelines.tune.inputs import StoppableThread


def test_work_that_had_failed_when_it_is_stopped_is_not_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        raise OSError("the disk says no")

    thread = StoppableThread(work, name="inputs")
    thread.join()
    with caplog.at_level(logging.WARNING):
        thread.stop()
    assert "inputs: the work had failed: the disk says no" in caplog.text


def test_work_that_is_stopped_cleans_up_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    def work() -> None:
        try:
            begun.set()
            while True:
                time.sleep(0.01)
        finally:
            cleaned.set()

    thread = StoppableThread(work, name="inputs")
    begun.wait()
    thread.stop()
    assert cleaned.is_set() and not thread.is_alive()
    assert not caplog.records
    with pytest.raises(KeyboardInterrupt):
        thread.result()
