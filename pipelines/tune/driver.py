"""The driver's side of a tuning: runs the stages that trials share, starts trials, and records their results.

Everything that happens to a trial is committed to the journal before Tune goes on, so that the same command continues a
tuning that was killed. Ray Tune itself is in :mod:`pipelines.tune.ray_tune`.

The stages before the tuned one are run here, each distinct one once. A trial must not run them, because it would hold
the CPUs that they wait for. A trial is started when its inputs are done. Meanwhile other trials keep running, and free
their CPUs when they end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.resources.placement import checked_nodes, require_lasting
from pipelines.run import run_step
from pipelines.stages.data_check import TELLING, KnownData, finished, known_data, pending
from pipelines.stages.places import places_of
from pipelines.stages.plan import Graph
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.train.files import CHECKPOINTS, RAY_TRAIN
from pipelines.tune.journal import HOPELESS, Journal, Phase, Report, TrialRecord
from pipelines.tune.space import describe
from pipelines.tune.tracking import TrialRun, TuningTracker
from pipelines.tune.tuning import POPULATION, Tuning, require_tuning_data
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

_POLL_S = 0.2


def run_tuning(tuning: Tuning) -> None:
    """Does the missing parts of the tuning, from its first trial to its report.

    Raises:
        PlacementError: the nodes of the cluster do not see the folders of the tuning.
        ValueError: weights do not fit, there is nothing to validate with, or no training reached its end.
    """
    require_lasting(tuning.graph.workspace)
    steps = tuning.graph.plan(until_stage=tuning.config.stage)
    require_tuning_data(tuning, known_data(tuning.graph, finished(steps)))
    weights = WeightsChecks()
    weights.require(steps, tuning.recipe)
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
            inputs = InputStages(tuning.config.stage, tracker, weights)
            inputs.run(
                tuning.graph, [stage.name for stage in tuning.shared], recipe, partial(require_tuning_data, tuning)
            )
            _run_trials(tuning, tracker, inputs)
        except BaseException as error:
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
        with Driver(tuning, "trial", members, journal, inputs, tracker, member, limit=None) as driver:
            run_population(tuning, driver)
    else:
        proposed, prepared = ProposedTrials(tuning, journal), tuning.shares_inputs
        limit = concurrent_trials(tuning)
        with Driver(tuning, "trial", proposed, journal, inputs, tracker, artifact, limit, prepared=prepared) as driver:
            if scheduler == "asha":
                run_with_halving(tuning, driver, journal)
            else:
                run_to_the_end(tuning, driver)
    records = final_records(tuning, journal)
    finals, prepared, limit = ListedTrials(records), tuning.inputs_are_done(records), concurrent_trials(tuning)
    with Driver(tuning, "final", finals, journal, inputs, tracker, artifact, limit, prepared=prepared) as driver:
        run_to_the_end(tuning, driver)
    results = Results.of(tuning, journal)
    results.write(tracker, pictures_of(results))


class InputStages:
    """Runs the stages that trials need, in a thread, one recipe after another."""

    def __init__(self, stage: str, tracker: PipelineTracker, weights: WeightsChecks) -> None:
        self._stage, self._tracker, self._weights = stage, tracker, weights
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._running: tuple[Recipe, Future[None]] | None = None

    def ready(self, recipe: Recipe) -> bool:
        """Whether a trial of ``recipe`` can start. If not, its inputs are being made: ask again later.

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
        names = [stage.name for stage in graph.with_inputs(self._stage)[:-1]]
        steps = graph.plan(until_stage=self._stage)
        known_data(graph, finished(steps)).require(recipe, [*pending(steps), self._stage])
        self._weights.require(steps, recipe)
        if all(step.state == "done" for step in steps if step.stage.name in names):
            return True

        def check(known: KnownData) -> None:
            known.require(recipe, [*pending(steps), self._stage])

        self._running = recipe, self._thread.submit(self.run, graph, names, recipe, check)
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
                    check(known_data(graph, known))


class Queue(Protocol):
    """Trials to come."""

    total: int
    """Trials in all, those that ended in earlier runs included."""
    done: int
    """Trials that ended in earlier runs."""

    def next(self) -> TrialRecord | None:
        """The next trial, new or to be continued; None when there are no more."""
        ...

    def reported(self, record: TrialRecord) -> None:
        """A trial was validated."""
        ...

    def ended(self, record: TrialRecord) -> None:
        """A trial came to its end."""
        ...


class Driver:
    """Hands out the trials of a queue, one phase of a tuning.

    Args:
        tuning: what is tuned.
        phase: which part of it.
        queue: the trials.
        journal: where they are written down.
        inputs: runs the stages that trials need.
        tracker: MLflow.
        output: the folder in which a trial trains.
        limit: most trials at once; None = as many as Tune finds resources for.
        prepared: whether no trial will have to wait for a stage that needs CPUs.
    """

    def __init__(
        self,
        tuning: Tuning,
        phase: Phase,
        queue: Queue,
        journal: Journal,
        inputs: InputStages,
        tracker: TuningTracker,
        output: Callable[[TrialRecord], Storage],
        limit: int | None,
        *,
        prepared: bool = False,
    ) -> None:
        self._tuning, self._phase, self._queue, self._journal = tuning, phase, queue, journal
        self._inputs, self._tracker, self._output, self._limit = inputs, tracker, output, limit
        self.prepared = prepared
        self._waiting: tuple[TrialRecord, Recipe] | None = None
        self._live: dict[str, TrialRun] = {}
        self._started: dict[str, float] = {}
        # Every report is logged with the progress, so no further lines are needed.
        self._progress = Progress(
            {"trial": "tuning", "final": "final ranking"}[phase],
            total=queue.total,
            unit="trials",
            done=queue.done,
            log_every_s=math.inf,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing. Tune pickles its callbacks into its snapshots, which are not used."""
        return {}

    def __enter__(self) -> Driver:
        self._progress.__enter__()
        for record in self._tracker.unsettled(self._journal.of(self._phase)):
            self._settle(record, self._nested_run(record))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._progress.__exit__(kind, error, trace)
        for run in self._live.values():
            run.interrupt("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def prepare(self) -> bool:
        """Waits for the inputs of the next trial; returns whether there is one."""
        while self._find():
            while (ready := self._has_inputs()) is False:
                time.sleep(_POLL_S)
            if ready:
                return True
        return False

    def next(self) -> TrialRecord | None:
        """The next trial to start; None = none now, perhaps later.

        Raises:
            StopIteration: there are no more, or :meth:`prepare` must be called first. If no trial runs, Tune would only
                wait, and hold the CPUs that the stages of the next trial need.
        """
        if self._limit is not None and len(self._live) >= self._limit:
            return None
        if not self._find():
            raise StopIteration
        if not self._has_inputs():
            if self._live:
                return None
            raise StopIteration
        assert self._waiting is not None
        (record, _), self._waiting = self._waiting, None
        self.start(record)
        return record

    def _find(self) -> bool:
        """Takes the next trial from the queue if none is waiting; returns whether there is one."""
        if self._waiting is None and (following := self._queue.next()) is not None:
            self._waiting = following, self._recipe_of(following)
        return self._waiting is not None

    def _recipe_of(self, record: TrialRecord) -> Recipe:
        return self._tuning.recipe_of_trial(record.values, phase=record.phase, seed=record.seed)

    def _has_inputs(self) -> bool | None:
        """Whether the waiting trial has its inputs; None = a stage failed, and with it the trial."""
        assert self._waiting is not None
        record, recipe = self._waiting
        try:
            return self._inputs.ready(recipe)
        except HOPELESS as error:
            self._waiting = None
            self.start(record)
            self.ended(record.name, "failed", f"a stage before it failed: {type(error).__name__}: {error}")
            return None

    def start(self, record: TrialRecord) -> None:
        """A trial is started."""
        self._journal.put(record)
        # Recorded, because jobs.gc removes folders that no run needs.
        self._tuning.graph.record(self._tuning.recipe, beside={self._tuning.folder, *self._journal.folders})
        self._live[record.name] = self._nested_run(record)

    def running(self, name: str) -> None:
        """A trial has what it needs and begins, or goes on."""
        self._started.setdefault(name, time.monotonic())

    def reported(self, name: str, report: Report, values: Mapping[str, Any]) -> None:
        """A trial was validated, by now with ``values``."""
        record = self._journal.put(replace(self._journal[name].reported(report), values=values))
        self._live[name].catch_up()
        self._queue.reported(record)
        self._tell(record, f"epoch {report.epoch:g}")

    def ended(self, name: str, state: Any, reason: str, final: Report | None = None) -> None:
        """A trial finished, was stopped, or failed."""
        record = self._journal[name]
        if record.ended:
            return
        if final is not None:
            record = record.reported(final)
        now = time.monotonic()
        seconds = now - self._started.pop(name, now)
        record = self._journal.put(replace(record, state=state, reason=reason, seconds=round(seconds, 2)))
        self._queue.ended(record)
        self._settle(record, self._live.pop(name))
        self._progress.advance(1)
        if self._phase == "trial" and (best := self.best()) is not None and best.value is not None:
            self._tracker.log_best(best.value, sum(other.ended for other in self._journal.of("trial")))
        self._tell(record, f"{state}: {reason}")

    def _nested_run(self, record: TrialRecord) -> TrialRun:
        recipe = self._recipe_of(record)
        return self._tracker.trial(record, recipe, self._output(record))

    def _settle(self, record: TrialRecord, run: TrialRun) -> None:
        checkpoints = CHECKPOINTS if self._tuning.resources.workers <= 1 else RAY_TRAIN
        run.finish(record, self._output(record).folder(MODEL if record.state == "finished" else checkpoints).uri)

    def best(self) -> TrialRecord | None:
        """The best of the trials that were trained to their end."""
        finished = [record for record in self._journal.of(self._phase) if record.state == "finished"]
        sign = 1 if self._tuning.config.direction == "max" else -1
        return max(finished, key=lambda record: sign * (record.value or 0.0), default=None)

    def _tell(self, record: TrialRecord, what: str) -> None:
        states = [other.state for other in self._journal.of(self._phase)]
        best = self.best()
        logger.info(
            "%s (%s, seed %d) %s%s | %s, %d running, %d stopped, %d failed%s",
            record.name,
            describe(record.values),
            record.seed,
            "" if record.value is None else f"{record.value:.4g}, ",
            what,
            self._progress.line(),
            len(self._started),
            states.count("stopped"),
            states.count("failed"),
            f", best {best.value:.4g} ({best.name})" if best is not None else "",
        )
