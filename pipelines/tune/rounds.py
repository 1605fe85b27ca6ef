"""One round of trials under Ray Tune: who trains where, and who ends bad trials."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from pipelines.recipe.resources import TrainResources
from pipelines.resources.ray_session import cluster_cpus, cluster_gpus, worker_gpus
from pipelines.tune.driver import Driver, DriverCallback, DriverSearcher, configuration, name_of
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.population import POPULATION, run_member
from pipelines.tune.search import Search
from pipelines.tune.space import Range, Space
from pipelines.tune.trial import PROGRESS, VALUE, TrialJob, run_trial

_ENVIRONMENT = {
    # Tune's own result files; the journal, the histories and MLflow hold the same.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # An interrupt shall interrupt; Tune would return as if all were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Relative paths of a recipe mean the same in a trial as in the command.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The driver says what happens.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A worker group inside a trial waits until a trial that was ended has given its CPUs back.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
}

_TUNE = "tune"
"""Folder of the search for what Tune writes on the way; nobody reads it afterwards."""


def run_to_the_end(search: Search, driver: Driver) -> None:
    """Runs the driver's trials, each to its end."""
    while driver.prepare():
        _fit(search, driver, FIFOScheduler(), "it was ended from outside")


def run_with_halving(search: Search, driver: Driver, journal: Journal) -> None:
    """Runs the driver's trials under successive halving, which knows the trials of earlier rounds and runs."""
    config = search.config.scheduler
    while driver.prepare():
        scheduler = ASHAScheduler(
            time_attr=PROGRESS,
            metric=VALUE,
            mode=search.config.direction,
            max_t=search.reports,
            grace_period=round(config.grace_epochs * config.reports_per_epoch),
            reduction_factor=config.reduction_factor,
        )
        for record in journal.of("search"):
            _replay(scheduler, record)
        _fit(search, driver, scheduler, f"asha: below the best 1/{config.reduction_factor:g} of those that came as far")


@dataclass(frozen=True)
class _PastTrial:
    """A trial of an earlier run of the search, as far as a scheduler asks."""

    trial_id: str


def _replay(scheduler: ASHAScheduler, record: TrialRecord) -> None:
    trial = _PastTrial(record.name)
    scheduler.on_trial_add(None, trial)
    for report in record.reports:
        scheduler.on_trial_result(None, trial, {PROGRESS: report.progress, VALUE: report.value})


def run_population(search: Search, driver: Driver) -> None:
    """Runs the driver's trials, all together, under population-based training."""
    members = {record.name: configuration(record) for record in _all(driver)}
    if not members:
        return
    config = search.config.scheduler
    scheduler = PopulationBasedTraining(
        time_attr=PROGRESS,
        metric=VALUE,
        mode=search.config.direction,
        perturbation_interval=config.perturbation_epochs * config.reports_per_epoch,
        quantile_fraction=config.quantile,
        hyperparam_mutations={"values": _mutations(search.space)},
        custom_explore_fn=lambda changed: {**changed, "values": _within(search.space, changed["values"])},
        log_config=False,
    )
    # Population-based training takes no searcher; its trials are known beforehand.
    space = {
        "name": tune.grid_search(list(members)),
        "values": tune.sample_from(lambda spec: dict(members[spec.config.name]["values"])),
        "seed": search.recipe.seed,
    }
    _fit(search, driver, scheduler, "it was ended from outside", population=space)


def concurrent_trials(search: Search) -> int | None:
    """Most trials at once; None where Tune counts, because a trial holds the resources of its one worker.

    A trial with a worker group holds none, and too many of them would wait for one another's.
    """
    resources, wanted = search.resources, search.config.concurrent_trials
    if resources.workers == 1:
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
    search: Search,
    driver: Driver,
    scheduler: TrialScheduler,
    stopped_by: str,
    *,
    population: Mapping[str, Any] | None = None,
) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It misses Tune's own result files.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
    job, alone = TrialJob.of(search), population is None
    members = search.storage.folder(POPULATION)

    def train(config: dict[str, Any]) -> None:
        if alone:
            run_trial(config, job=job)
        else:
            run_member(config, job=job, folder=members)

    storage = search.storage.folder(_TUNE)
    storage.delete("")
    Tuner(
        tune.with_resources(train, _trial_resources(search.resources)),
        param_space=dict(population or {}),
        tune_config=TuneConfig(
            search_alg=DriverSearcher(driver, search.config.direction) if alone else None,
            scheduler=scheduler,
            num_samples=-1 if alone else 1,
            # One that waits to be used again keeps its CPUs from the stages that the next trial needs.
            reuse_actors=False,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=RunConfig(
            name="round",
            storage_path=storage.path(),
            storage_filesystem=storage.filesystem,
            # Of lost processes: what a trial raises itself is not tried again.
            failure_config=FailureConfig(max_failures=search.resources.max_failures),
            callbacks=[DriverCallback(driver, stopped_by)],
            # A scheduler has no say in what came to its end.
            stop=lambda trial_id, result: result["state"] != "running",
            verbose=0,
        ),
    ).fit()
    storage.delete("")


def _trial_resources(resources: TrainResources) -> dict[str, float] | PlacementGroupFactory:
    if resources.workers > 1:
        # Its workers ask for their own. Tune wants to know of something that a trial holds: a byte.
        return PlacementGroupFactory([{"memory": 1}])
    return {"CPU": resources.cpus_per_worker, "GPU": worker_gpus(resources)}


def _mutations(space: Space) -> dict[str, Any]:
    mutations: dict[str, Any] = {}
    for parameter in space.parameters:
        domain = parameter.domain
        if not isinstance(domain, Range):
            mutations[parameter.field] = list(domain.values)
        elif domain.integer:
            mutations[parameter.field] = tune.randint(int(domain.low), int(domain.high) + 1)
        else:
            draw = tune.loguniform if domain.log else tune.uniform
            mutations[parameter.field] = draw(domain.low, domain.high)
    return mutations


def _within(space: Space, setting: Mapping[str, Any]) -> dict[str, Any]:
    """A mutated setting inside the space: factors of 0.8 and 1.2 may leave it."""
    return {
        field: domain.tidy(value) if isinstance(domain := space[field].domain, Range) else value
        for field, value in setting.items()
    }
