"""The driver's side of trials: hands them out, and records their results.

Everything that happens to a trial is committed to the journal before Tune goes on, so that the same command continues a
tuning that was killed. Ray Tune itself is in :mod:`pipelines.tune.ray_tune`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from pipelines.models.folder import MODEL
from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.train.files import CHECKPOINTS, RAY_TRAIN
from pipelines.tune.journal import HOPELESS, Journal, Phase, Report, TrialRecord
from pipelines.tune.space import describe
from pipelines.tune.tracking import TrialRun, TuningTracker
from pipelines.tune.tuning import Tuning
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

_POLL_S = 0.2


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
        has_inputs: whether the inputs of a recipe's trial are there; if not, it has them made. Raises if that failed.
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
        has_inputs: Callable[[Recipe], bool],
        tracker: TuningTracker,
        output: Callable[[TrialRecord], Storage],
        limit: int | None,
        *,
        prepared: bool = False,
    ) -> None:
        self._tuning, self._phase, self._queue, self._journal = tuning, phase, queue, journal
        self._inputs_ready, self._tracker, self._output, self._limit = has_inputs, tracker, output, limit
        self.prepared = prepared
        self._waiting: tuple[TrialRecord, Recipe] | None = None
        # By name: MLflow's runs of trials that are handed out, and when Tune began those that have their resources.
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
        # There may be fewer settings than trials that are wanted.
        self._progress.expect(self._queue.total)
        return self._waiting is not None

    def _recipe_of(self, record: TrialRecord) -> Recipe:
        return self._tuning.recipe_of_trial(record.values, phase=record.phase, seed=record.seed)

    def _has_inputs(self) -> bool | None:
        """Whether the waiting trial has its inputs; None = a stage failed, and with it the trial."""
        assert self._waiting is not None
        record, recipe = self._waiting
        try:
            return self._inputs_ready(recipe)
        except HOPELESS as error:
            self._waiting = None
            self.start(record)
            # Started first, so that journal and MLflow hold it like a trial that failed by itself.
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
        # Not replaced: Tune says so again when a process that was lost is made again.
        self._started.setdefault(name, time.monotonic())

    def reported(self, name: str, report: Report, values: Mapping[str, Any]) -> None:
        """A trial was validated, by now with ``values``."""
        record = self._journal.put(replace(self._journal[name].reported(report), values=values))
        # The trial has committed its history before it reported, so this point is in it.
        self._live[name].catch_up()
        self._queue.reported(record)
        self._tell(record, f"epoch {report.epoch:g}")

    def ended(self, name: str, state: Any, reason: str, final: Report | None = None) -> None:
        """A trial finished, was stopped, or failed."""
        record = self._journal[name]
        # Tune tells of an end twice: by the last report, which says how it ended, and when it has stopped the trial.
        if record.ended:
            return
        if final is not None:
            record = record.reported(final)
        now = time.monotonic()
        seconds = now - self._started.pop(name, now)
        record = self._journal.put(replace(record, state=state, reason=reason, seconds=round(seconds, 2)))
        self._queue.ended(record)
        # After the journal: if the driver is killed in between, the next one settles it (__enter__).
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
        return max(finished, key=lambda record: self._tuning.config.sign * (record.value or 0.0), default=None)

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
