"""The driver's side of a search: hands trials out to Ray Tune, and writes down what becomes of them.

Everything that happens to a trial is committed to the journal before Tune goes on, so whatever is
killed, the same command goes on from there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from pipelines.models.folder import MODEL
from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.train.files import CHECKPOINTS, RAY_TRAIN
from pipelines.tune.inputs import InputStages
from pipelines.tune.journal import Journal, Phase, Report, TrialRecord
from pipelines.tune.search import FOLDER, Search
from pipelines.tune.space import describe
from pipelines.tune.tracking import SearchTracker, TrialRun
from pipelines.tune.trial import HOPELESS, VALUE
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
    """Hands out the trials of a queue, one phase of a search.

    Args:
        search: what is searched.
        phase: which part of it.
        queue: the trials.
        journal: where they are written down.
        inputs: runs the stages that trials need.
        tracker: MLflow.
        output: the folder in which a trial trains.
        limit: most trials at once; None = Tune finds out what fits.
    """

    def __init__(
        self,
        search: Search,
        phase: Phase,
        queue: Queue,
        journal: Journal,
        inputs: InputStages,
        tracker: SearchTracker,
        output: Callable[[TrialRecord], Storage],
        limit: int | None,
    ) -> None:
        self._search, self._phase, self._queue, self._journal = search, phase, queue, journal
        self._inputs, self._tracker, self._output, self._limit = inputs, tracker, output, limit
        self._waiting: tuple[TrialRecord, Recipe] | None = None
        self._live: dict[str, TrialRun] = {}
        self._started: dict[str, float] = {}
        # Every report has a line of its own, so the progress needs none in between.
        self._progress = Progress(
            {"search": "search", "final": "final ranking"}[phase],
            total=queue.total,
            unit="trials",
            done=queue.done,
            log_every_s=math.inf,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune puts its callbacks into snapshots, from which nobody goes on."""
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
        """Waits for the inputs of the next trial; whether there is one."""
        while self._find():
            while (ready := self._has_inputs()) is False:
                time.sleep(_POLL_S)
            if ready:
                return True
        return False

    def next(self) -> TrialRecord | None:
        """The next trial to start; None = none now, perhaps later.

        Raises:
            StopIteration: there are no more, or :meth:`prepare` must be called before the next: where no trial
                runs, Tune sits and waits, and keeps the CPUs of the last trial from the stages of the next.
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
        """Takes the next trial from the queue if none is waiting; whether there is one."""
        if self._waiting is None and (following := self._queue.next()) is not None:
            self._waiting = following, self._search.recipe_of(following.values, following.seed)
        return self._waiting is not None

    def _has_inputs(self) -> bool | None:
        """Whether the waiting trial has its inputs; None = it never will, and is one that failed."""
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
        """A trial is handed out."""
        self._journal.put(record)
        # jobs.gc removes what no run needs.
        own = f"{FOLDER}/{self._search.fingerprint}"
        self._search.graph.record(self._search.recipe, beside={own, *self._journal.folders})
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
        if self._phase == "search" and (best := self.best()) is not None and best.value is not None:
            self._tracker.log_best(best.value, sum(other.ended for other in self._journal.of("search")))
        self._tell(record, f"{state}: {reason}")

    def _nested_run(self, record: TrialRecord) -> TrialRun:
        recipe = self._search.recipe_of(record.values, record.seed)
        return self._tracker.trial(record, recipe, self._output(record))

    def _settle(self, record: TrialRecord, run: TrialRun) -> None:
        checkpoints = CHECKPOINTS if self._search.resources.workers == 1 else RAY_TRAIN
        run.finish(record, self._output(record).folder(MODEL if record.state == "finished" else checkpoints).uri)

    def best(self) -> TrialRecord | None:
        """The best of the trials that were trained to their end."""
        finished = [record for record in self._journal.of(self._phase) if record.state == "finished"]
        sign = 1 if self._search.config.direction == "max" else -1
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


class DriverSearcher(Searcher):  # type: ignore[misc]
    """Tune asks the driver for trials through this; it keeps nothing itself."""

    def __init__(self, driver: Driver, mode: str) -> None:
        super().__init__(metric=VALUE, mode=mode)
        self._driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            record = self._driver.next()
        except StopIteration:
            finished: str = Searcher.FINISHED
            return finished
        return None if record is None else configuration(record)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback says more."""

    def save(self, checkpoint_path: str) -> None:
        # Tune wants a file; the journal has all.
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """The journal has all."""


class DriverCallback(Callback):  # type: ignore[misc]
    """Tune tells the driver through this what happens to its trials."""

    def __init__(self, driver: Driver, stopped_by: str) -> None:
        self._driver, self._stopped_by = driver, stopped_by

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.running(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        report = Report(**{item.name: result[item.name] for item in fields(Report)})
        if result["state"] == "running":
            self._driver.reported(str(trial), report, trial.config["values"])
        elif result["state"] == "finished":
            self._driver.ended(str(trial), "finished", "trained to its end", report)
        else:
            self._driver.ended(str(trial), "failed", result["reason"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.ended(str(trial), "stopped", self._stopped_by)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.ended(str(trial), "failed", f"it failed too often; at last: {trial.get_error()}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        logger.warning("%s: its process was lost; it goes on from its last checkpoint", trial)


def configuration(record: TrialRecord) -> dict[str, Any]:
    """What Tune hands to the function of a trial."""
    return {"name": record.name, "values": dict(record.values), "seed": record.seed}


def name_of(trial: Trial) -> str:
    """Tune's name of a trial: ours. It keeps it when it takes over the configuration of another."""
    return str(trial.config["name"])
