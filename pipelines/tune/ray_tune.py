"""Running the trials with Ray Tune: resources, schedulers that end bad trials, and the exchange with the driver.

What each does in its own process is in :mod:`pipelines.tune.trials`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from pipelines.recipe.resources import TrainResources
from pipelines.resources.ray_session import cluster_cpus, cluster_gpus, worker_gpus
from pipelines.tune.driver import Driver
from pipelines.tune.journal import Journal, Report, TrialRecord
from pipelines.tune.space import Range, Space
from pipelines.tune.trials import TrialJob, configuration, run_member, run_trial
from pipelines.tune.tuning import POPULATION, Tuning

logger = logging.getLogger(__name__)

PROGRESS, VALUE = "progress", "value"
"""Keys of a report that schedulers read: their clock, and the metric."""

_ENVIRONMENT = {
    # No result files of Tune's own: the journal, the histories and MLflow hold the same.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # After Ctrl-C Tune would return as if all trials were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The driver logs what happens.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A worker group inside a trial may have to wait until an ended trial has freed its CPUs.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
}

_TUNE = "tune"
"""Folder of the tuning for Tune's own files, which are not used afterwards."""


def run_to_the_end(tuning: Tuning, driver: Driver) -> None:
    """Runs the driver's trials, each to its end."""
    # A round of Tune ends when no trial runs and the next one has no inputs yet; see Driver.next.
    while driver.prepare():
        _fit(tuning, driver, FIFOScheduler(), "it was ended from outside")


def run_with_halving(tuning: Tuning, driver: Driver, journal: Journal) -> None:
    """Runs the driver's trials under successive halving, including what is known of trials from earlier rounds and
    runs."""
    share = f"1/{tuning.config.scheduler.reduction_factor:g}"
    while driver.prepare():
        _fit(tuning, driver, Halving(tuning, journal), f"asha: below the best {share} of those that came as far")


class Halving(ASHAScheduler):  # type: ignore[misc]
    """Successive halving that is restored from the journal.

    Tune gives a resumed trial a new id. Here trials are identified by name, so a resumed trial keeps the score with
    which it first came to a rung, and is not counted there twice.
    """

    def __init__(self, tuning: Tuning, journal: Journal) -> None:
        config = tuning.config.scheduler
        super().__init__(
            time_attr=PROGRESS,
            metric=VALUE,
            mode=tuning.config.direction,
            max_t=tuning.reports,
            grace_period=round(config.grace_epochs * config.reports_per_epoch),
            reduction_factor=config.reduction_factor,
        )
        # Trials that have ended, too: later ones are compared with the scores that these left at the rungs.
        for record in journal.of("trial"):
            trial = _NamedTrial(record.name)
            # The scheduler does not use the controller.
            super().on_trial_add(None, trial)
            for report in record.reports:
                super().on_trial_result(None, trial, {PROGRESS: report.progress, VALUE: report.value})

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        super().on_trial_add(controller, _NamedTrial(name_of(trial)))

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(controller, _NamedTrial(name_of(trial)), result)
        return action

    def on_trial_complete(self, controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(controller, _NamedTrial(name_of(trial)), result)

    def on_trial_remove(self, controller: Any, trial: Trial) -> None:
        super().on_trial_remove(controller, _NamedTrial(name_of(trial)))


@dataclass(frozen=True)
class _NamedTrial:
    """What a scheduler needs to know of a trial, with our name as its id."""

    trial_id: str


def run_population(tuning: Tuning, driver: Driver) -> None:
    """Runs the driver's trials, all together, under population-based training."""
    members = {record.name: configuration(record) for record in _all(driver)}
    if not members:
        return
    config = tuning.config.scheduler
    scheduler = PopulationBasedTraining(
        time_attr=PROGRESS,
        metric=VALUE,
        mode=tuning.config.direction,
        perturbation_interval=config.perturbation_epochs * config.reports_per_epoch,
        quantile_fraction=config.quantile,
        hyperparam_mutations={"values": _mutations(tuning.space)},
        custom_explore_fn=lambda changed: {**changed, "values": _within(tuning.space, changed["values"])},
        log_config=False,
    )
    # Population-based training cannot use a searcher, and its trials are known beforehand.
    space = {
        "name": tune.grid_search(list(members)),
        # Tune resolves it after the name that it looks up, so each name gets the values that belong to it.
        "values": tune.sample_from(lambda spec: dict(members[spec.config.name]["values"])),
        "seed": tuning.recipe.seed,
    }
    _fit(tuning, driver, scheduler, "it was ended from outside", population=space)


def concurrent_trials(tuning: Tuning) -> int | None:
    """Most trials at once; None = Tune limits them, because each trial holds the resources of its one worker.

    A trial with a worker group holds no resources itself, so too many trials would wait for each other.
    """
    resources, wanted = tuning.resources, tuning.config.concurrent_trials
    if resources.workers <= 1:
        return wanted
    gpus = worker_gpus(resources)
    limits = [cluster_cpus() / (resources.workers * resources.cpus_per_worker)] if resources.cpus_per_worker else []
    limits += [cluster_gpus() / (resources.workers * gpus)] if gpus else []
    return max(1, int(min([*limits, *([wanted] if wanted else [])], default=1)))


def _all(driver: Driver) -> list[TrialRecord]:
    records = []
    while driver.prepare():
        if (record := driver.next()) is not None:
            records.append(record)
    return records


def _fit(
    tuning: Tuning,
    driver: Driver,
    scheduler: TrialScheduler,
    stopped_by: str,
    *,
    population: Mapping[str, Any] | None = None,
) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It warns that Tune's result files are missing, which are turned off.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    job, alone = TrialJob.of(tuning), population is None
    members = tuning.storage.folder(POPULATION)

    def train(config: dict[str, Any]) -> None:
        # Before Tune uses a process again, it waits for the thread of the trial that was ended in it, which may still
        # write files; by default for 2 s. It is read in that process, so it is set there.
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
        if alone:
            run_trial(config, job=job)
        else:
            run_member(config, job=job, folder=members)

    storage = tuning.storage.folder(_TUNE)
    # Also what a killed driver left: a tuning goes on from its journal alone.
    storage.delete("")
    Tuner(
        tune.with_resources(train, _trial_resources(tuning.resources)),
        param_space=dict(population or {}),
        tune_config=TuneConfig(
            search_alg=DriverSearcher(driver, tuning.config.direction) if alone else None,
            scheduler=scheduler,
            # -1 = until the searcher says that there are no more; 1 = once through the grid of names.
            num_samples=-1 if alone else 1,
            # It takes a process ten seconds to load PyTorch. One that waits for its next trial holds its CPUs, so there
            # must be no stage that needs them.
            reuse_actors=alone and driver.prepared,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=RunConfig(
            name="round",
            storage_path=storage.path(),
            storage_filesystem=storage.filesystem,
            # This counts lost processes; errors that a trial raises itself are not retried.
            failure_config=FailureConfig(max_failures=tuning.resources.max_failures),
            callbacks=[DriverCallback(driver, stopped_by)],
            # A trial that reports its end is over, whatever the scheduler decides.
            stop=lambda trial_id, result: result["state"] != "running",
            verbose=0,
        ),
    ).fit()
    storage.delete("")


def _trial_resources(resources: TrainResources) -> dict[str, float] | PlacementGroupFactory:
    if resources.workers > 1:
        # Its workers request their own resources. Tune requires that a trial holds something, so it holds one byte.
        return PlacementGroupFactory([{"memory": 1}])
    return {"CPU": resources.cpus_per_worker, "GPU": worker_gpus(resources)}


def _mutations(space: Space) -> dict[str, Any]:
    mutations: dict[str, Any] = {}
    for parameter in space.parameters:
        domain = parameter.domain
        if not isinstance(domain, Range):
            mutations[parameter.field] = list(domain.values)
        elif domain.integer:
            # Tune leaves out the upper end.
            mutations[parameter.field] = tune.randint(int(domain.low), int(domain.high) + 1)
        else:
            draw = tune.loguniform if domain.log else tune.uniform
            mutations[parameter.field] = draw(domain.low, domain.high)
    return mutations


def _within(space: Space, setting: Mapping[str, Any]) -> dict[str, Any]:
    """A mutated setting, moved back into the space, which the factors of 0.8 and 1.2 may leave."""
    return {
        field: domain.tidy(value) if isinstance(domain := space[field].domain, Range) else value
        for field, value in setting.items()
    }


class DriverSearcher(Searcher):  # type: ignore[misc]
    """Through this Tune asks the driver for trials; it has no state of its own."""

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
        """Nothing to do; the callback reports more."""

    def save(self, checkpoint_path: str) -> None:
        # Tune requires a file; the journal holds everything.
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do; the journal holds everything."""


class DriverCallback(Callback):  # type: ignore[misc]
    """Through this Tune tells the driver what happens to its trials."""

    def __init__(self, driver: Driver, stopped_by: str) -> None:
        self._driver, self._stopped_by = driver, stopped_by

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._driver.running(str(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        report = Report(**{item.name: result[item.name] for item in fields(Report)})
        if result["state"] == "running":
            # Tune has asked the scheduler before, so these are the values that the trial goes on with.
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


def name_of(trial: Trial) -> str:
    """Our name of one of Tune's trials that was just made.

    A trial that takes over the configuration of another keeps its name, but then finds the other's name in there.
    """
    return str(trial.config["name"])
