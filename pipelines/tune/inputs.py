"""The stages before the searched one: run by the driver, each distinct one once, never by a trial.

A trial that ran them itself would hold the CPUs that they wait for. A trial is handed out when its
inputs are done; meanwhile the trials that run keep running, and free their CPUs as they end.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.run import run_step
from pipelines.stages.stage import Graph
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.tune.search import with_inputs


class InputStages:
    """Runs what a trial needs, in a thread, one recipe after another."""

    def __init__(self, stage: str, tracker: PipelineTracker) -> None:
        self._stage, self._tracker = stage, tracker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._running: tuple[Recipe, Future[None]] | None = None

    def ready(self, recipe: Recipe) -> bool:
        """Whether a trial of ``recipe`` can start; if not, what it needs is on its way: ask again.

        Raises:
            Exception: a stage that it needs failed.
        """
        if self._running is not None:
            recipe_running, future = self._running
            if not future.done():
                return False
            self._running = None
            future.result()
            if recipe_running == recipe:
                return True
        graph = make_graph(recipe)
        names = [stage.name for stage in with_inputs(graph, self._stage)[:-1]]
        if all(step.state == "done" for step in graph.plan(until_stage=self._stage) if step.stage.name in names):
            return True
        self._running = recipe, self._thread.submit(self.run, graph, names, recipe)
        return False

    def run(self, graph: Graph, names: Collection[str], recipe: Recipe) -> None:
        """Runs those of the stages ``names`` that are not done."""
        for step in graph.plan(until_stage=self._stage):
            if step.stage.name in names and step.state != "done":
                run_step(graph, step, self._tracker, recipe)
