"""Runs a tuning from its first trial to its report, and the stages that its trials need.

The stages before the tuned one are run here, each distinct one once. A trial must not run them, because it would hold
the CPUs that they wait for. A trial is started when its inputs are done. Meanwhile other trials keep running, and free
their CPUs when they end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.resources.placement import checked_nodes, require_lasting
from pipelines.run import run_step
from pipelines.stages.data_check import TELLING, KnownData, finished, known_data, pending
from pipelines.stages.places import places_of
from pipelines.stages.plan import Graph
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.tune.checks import require_tuning_data
from pipelines.tune.driver import Driver
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.stoppable_thread import StoppableThread
from pipelines.tune.tracking import TuningTracker
from pipelines.tune.tuning import POPULATION, Tuning
from pipelines.workspace.storage import Storage


def run_tuning(tuning: Tuning) -> None:
    """Does the missing parts of the tuning, from its first trial to its report.

    Raises:
        PlacementError: the nodes of the cluster do not see the folders of the tuning.
        ValueError: weights do not fit, there is nothing to validate with, or no training reached its end.
    """
    require_lasting(tuning.graph.workspace)
    steps = tuning.graph.plan(until_stage=tuning.config.stage)
    known = known_data(tuning.graph, finished(steps))
    require_tuning_data(tuning, known)
    weights = WeightsChecks()
    weights.require(steps, tuning.recipe)
    weights.require_answering(steps, tuning.recipe, known.vocabulary)
    # Baselines are trained last, so unfit weights of theirs would show only when all trials are done.
    for values in tuning.config.baselines.values():
        baseline = tuning.recipe_of(values)
        weights.require(make_graph(baseline).plan(until_stage=tuning.config.stage), baseline)
    from pipelines.resources.allotment import allot
    from pipelines.resources.ray_session import ray_session

    recipe = tuning.recipe
    # A trial with a worker group needs the dashboard: Ray Train learns from it that the trial was ended, and frees its
    # resources.
    dashboard = tuning.resources.workers > 1
    with (
        ray_session(recipe.resources, dashboard=dashboard),
        checked_nodes(tuning.graph.workspace, places_of(tuning.graph, recipe)),
    ):
        allot([*(stage.name for stage in tuning.shared), tuning.config.stage], recipe.resources)
        tracker = TuningTracker(tuning)
        try:
            with InputStages(tuning.config.stage, tracker, weights) as inputs:
                shared = [stage.name for stage in tuning.shared]
                inputs.run(tuning.graph, shared, recipe, partial(require_tuning_data, tuning))
                _run_trials(tuning, tracker, inputs)
        except BaseException as error:
            # Also after SIGTERM, which jobs.settings.run_job turns into a KeyboardInterrupt.
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.finish("FINISHED")


def _run_trials(tuning: Tuning, tracker: TuningTracker, inputs: InputStages) -> None:
    # Imported here because they import Matplotlib and Ray, which reads the session's environment variables on import.
    from pipelines.tune.pictures import pictures_of
    from pipelines.tune.proposals import ListedTrials, ProposedTrials, final_records, population
    from pipelines.tune.ray_tune import concurrent_trials, run_population, run_to_the_end, run_with_halving
    from pipelines.tune.results import Results

    journal, scheduler = Journal(tuning.storage), tuning.config.scheduler.name

    def artifact(record: TrialRecord) -> Storage:
        return tuning.graph.workspace.folder(tuning.config.stage, record.fingerprint)

    def member(record: TrialRecord) -> Storage:
        return tuning.storage.folder(POPULATION, record.name)

    if scheduler == "pbt":
        members = ListedTrials(population(tuning, journal))
        # No limit, because run_population takes all members from the driver before one of them runs.
        with Driver(tuning, "trial", members, journal, inputs.ready, tracker, member, limit=None) as driver:
            run_population(tuning, driver)
    else:
        proposed, prepared = ProposedTrials(tuning, journal), tuning.shares_inputs
        limit = concurrent_trials(tuning)
        with Driver(
            tuning, "trial", proposed, journal, inputs.ready, tracker, artifact, limit, prepared=prepared
        ) as driver:
            if scheduler == "asha":
                run_with_halving(tuning, driver, journal)
            else:
                run_to_the_end(tuning, driver)
    # Seeds change labels and estimators, so inputs of the ranking may be missing where the trials shared all of them.
    records = final_records(tuning, journal)
    finals, prepared, limit = ListedTrials(records), tuning.inputs_are_done(records), concurrent_trials(tuning)
    with Driver(tuning, "final", finals, journal, inputs.ready, tracker, artifact, limit, prepared=prepared) as driver:
        run_to_the_end(tuning, driver)
    results = Results.of(tuning, journal)
    results.write(tracker, pictures_of(results))


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
