"""The stages that trials need, run beside them in a thread that can be stopped as Ctrl-C stops the main one."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Collection
from threading import Thread
from typing import Any

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.run import run_step
from pipelines.stages.data_check import TELLING, KnownData, finished, known_data, pending
from pipelines.stages.plan import Graph
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tracking.mlflow_runs import PipelineTracker

logger = logging.getLogger(__name__)

_STOP_S = 30.0
"""Longest time to wait until stopped work has released what it holds: code that is not Python ends first."""


class InputStages:
    """Runs the stages that trials need, in a thread, one recipe after another.

    Where its context ends, a stage that still runs is interrupted, as one of the main thread would be.
    """

    def __init__(self, stage: str, tracker: PipelineTracker, weights: WeightsChecks) -> None:
        self._stage, self._tracker, self._weights = stage, tracker, weights
        self._running: tuple[Recipe, StoppableThread] | None = None

    def __enter__(self) -> InputStages:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running is not None:
            self._running[1].stop()

    def ready(self, recipe: Recipe) -> bool:
        """Whether a trial of ``recipe`` can start. If not, its inputs are being made: ask again later.

        Raises:
            Exception: a stage that it needs failed.
        """
        if self._running is not None:
            recipe_running, thread = self._running
            if thread.is_alive():
                return False
            self._running = None
            thread.result()
            if recipe_running == recipe:
                return True
        graph = make_graph(recipe)
        names = [stage.name for stage in graph.with_inputs(self._stage)[:-1]]
        steps = graph.plan(until_stage=self._stage)
        known = known_data(graph, finished(steps))
        known.require(recipe, [*pending(steps), self._stage])
        self._weights.require(steps, recipe)
        self._weights.require_answering(steps, recipe, known.vocabulary)
        if all(step.state == "done" for step in steps if step.stage.name in names):
            return True

        def check(known: KnownData) -> None:
            known.require(recipe, [*pending(steps), self._stage])

        # A thread, because Tune asks for trials in the main one and must not be held up while other trials report.
        self._running = recipe, StoppableThread(lambda: self.run(graph, names, recipe, check), name="inputs")
        return False

    def run(self, graph: Graph, names: Collection[str], recipe: Recipe, check: Callable[[KnownData], None]) -> None:
        """Runs those of the stages ``names`` that are not done; ``check`` is told what they say of the data."""
        steps = graph.plan(until_stage=self._stage)
        known = finished(steps)
        for step in steps:
            if step.stage.name in names and step.state != "done":
                run_step(graph, step, self._tracker, recipe)
                known.add(step.stage.name)
                if step.stage.name in TELLING:
                    data = known_data(graph, known)
                    check(data)
                    self._weights.require_answering(steps, recipe, data.vocabulary)


class StoppableThread(Thread):
    """Begins ``work`` at once."""

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        # A daemon, because Python waits for all other threads when it exits.
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error

    def result(self) -> None:
        """Waits for the end of the work, and raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Raises ``KeyboardInterrupt`` in the work, and waits until that has cleaned up."""
        if self.is_alive():
            # Python has no other call for it. Unlike a flag, it ends work that does not ask, in the way of the main
            # thread.
            interrupt = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), interrupt)
            self.join(_STOP_S)
        if self.is_alive():
            logger.warning("%s: the work did not end within %g s, and ends with this process", self.name, _STOP_S)
        elif isinstance(self._error, Exception):
            # Nobody asks for the result any more.
            logger.warning("%s: the work had failed: %s", self.name, self._error)
