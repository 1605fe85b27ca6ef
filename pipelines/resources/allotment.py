"""What the stages of a run take of the cluster, and where each number comes from; logged before they start."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from pipelines.recipe.resources import ActorResources, ResourcesConfig, TaskResources, TrainResources
from pipelines.resources.ray_session import (
    actors_that_fit,
    cluster_cpus,
    cluster_gpus,
    cluster_memory_gb,
    is_fixed,
    worker_gpus,
    works_here,
)

logger = logging.getLogger(__name__)

Resources = TaskResources | ActorResources | TrainResources


def allot(stages: Sequence[str], config: ResourcesConfig) -> None:
    """Logs what ``stages`` will take of the connected cluster.

    Raises:
        ValueError: a stage would run on CPUs although ``config`` demands GPUs; or a training has more workers than
            there are GPUs, and there are some; or a stage takes more than this machine has, and would wait for ever.
    """
    logger.info(
        "the cluster has %g CPUs, %g GPUs, %.3g GB of memory", cluster_cpus(), cluster_gpus(), cluster_memory_gb()
    )
    resources = {name: found for name in stages if (found := resources_of(name, config)) is not None}
    for name, found in resources.items():
        logger.info("%s takes %s", name, describe(found))
    for name, found in resources.items():
        # In a loop of its own: whoever reads the refusal has the needs of all stages above it.
        _require_room(name, found)
    for name, found in resources.items():
        _require_gpu_each(name, found)
    without = [name for name, found in resources.items() if _is_left_without_gpu(found)]
    if without and config.require_gpus:
        raise ValueError(
            f"resources.require_gpus is true and the cluster has {cluster_gpus():g} GPUs: {', '.join(without)} would "
            "run on CPUs. Add GPU nodes; where they start on demand, name what each stage takes "
            "(resources.STAGE.gpus_per_worker or gpus_per_actor)"
        )
    if without:
        logger.warning("the cluster has too few GPUs for %s: the work is done on CPUs", ", ".join(without))
    for name, found in resources.items():
        if isinstance(found, TrainResources) and (gpus := worker_gpus(found)):
            # With 0 workers the process of the command trains, on one GPU.
            idle = cluster_gpus() - max(1, found.workers) * gpus
            if idle >= 1:
                logger.warning("%s leaves %g GPUs idle; raise resources.%s.workers to use them", name, idle, name)


def need_ray(stages: Sequence[str], config: ResourcesConfig) -> bool:
    """Whether ``stages`` need Ray: they have tasks, actors or workers, or a cluster is named.

    They also do if GPUs are demanded, because Ray says how many there are.
    """
    if config.ray_address or os.environ.get("RAY_ADDRESS") or config.require_gpus:
        return True
    resources = [found for name in stages if (found := resources_of(name, config)) is not None]
    return any(found.workers > 0 if isinstance(found, TrainResources) else not works_here(found) for found in resources)


def _require_gpu_each(stage: str, resources: Resources) -> None:
    """Refuses workers of which only some would have a GPU: all of them would train on CPUs, beside idle GPUs."""
    if not isinstance(resources, TrainResources) or resources.gpus_per_worker is not None:
        return
    if 0 < cluster_gpus() < resources.workers:
        raise ValueError(
            f"resources.{stage}.workers is {resources.workers} and the cluster has {cluster_gpus():g} GPUs, too few "
            f"for one each; set resources.{stage}.workers to that many, or resources.{stage}.gpus_per_worker to 0 "
            "to train on CPUs, or to 1 where GPU nodes start on demand"
        )


def _require_room(stage: str, resources: Resources) -> None:
    """Raises if a stage can never fit on a local Ray. On a cluster it only warns: nodes may be started on demand."""
    for unit, needed, there in _needs(resources):
        if needed <= there:
            continue
        message = f"{stage} takes {needed:g} {unit} at once ({describe(resources)}), and there are {there:g}"
        if is_fixed():
            raise ValueError(f"{message}; lower what resources.{_section(stage)} asks for")
        logger.warning("%s: it waits until nodes with them join the cluster", message)


def _needs(resources: Resources) -> list[tuple[str, float, float]]:
    """The least that a stage needs at the same time: unit, amount, and the amount that the cluster has."""
    if isinstance(resources, (TaskResources, ActorResources)) and works_here(resources):
        return []
    if isinstance(resources, TaskResources):
        count, cpus, memory = 1, resources.cpus_per_task, resources.memory_gb_per_task
        gpus = resources.gpus_per_task
    elif isinstance(resources, ActorResources):
        count, cpus, memory = resources.min_actors, resources.cpus_per_actor, resources.memory_gb_per_actor
        gpus = actors_that_fit(resources)[0]
    else:
        count, cpus, memory = resources.workers, resources.cpus_per_worker, resources.memory_gb_per_worker
        gpus = worker_gpus(resources)
    return [
        ("CPUs", count * cpus, cluster_cpus()),
        ("GPUs", count * gpus, cluster_gpus()),
        ("GB of memory", count * (memory or 0.0), cluster_memory_gb()),
    ]


def resources_of(stage: str, config: ResourcesConfig) -> Resources | None:
    """The settings of a stage; None where the driver does all of its work."""
    return getattr(config, _section(stage), None)


def _section(stage: str) -> str:
    """The field of ``resources`` for a stage. Stages that score captions and videos share that of the evaluation."""
    shared = {"shapes": "decode", "frames": "decode", "zero_shot": "evaluation", "probe": "evaluation"}
    return shared.get(stage, stage)


def describe(resources: Resources) -> str:
    """``resources`` in numbers on the connected cluster, each with its source."""
    if isinstance(resources, (TaskResources, ActorResources)) and works_here(resources):
        return "this process (recipe)"
    if isinstance(resources, TaskResources):
        limit = "as many tasks as fit" if resources.max_tasks is None else f"{resources.max_tasks} tasks (recipe)"
        share = f", {resources.gpus_per_task:g} GPUs (recipe)" if resources.gpus_per_task else ""
        return f"{limit}, each {resources.cpus_per_task:g} CPUs{share}{_memory(resources.memory_gb_per_task)}"
    if isinstance(resources, ActorResources):
        gpus, most = actors_that_fit(resources)
        number = f"{resources.min_actors} to {most} actors ({_source(resources.max_actors)})"
        each, memory = (resources.cpus_per_actor, resources.gpus_per_actor), resources.memory_gb_per_actor
    else:
        workers = f"{resources.workers} workers" if resources.workers else "this process"
        gpus, number = worker_gpus(resources), f"{workers} (recipe)"
        each, memory = (resources.cpus_per_worker, resources.gpus_per_worker), resources.memory_gb_per_worker
    return f"{number}, each {each[0]:g} CPUs, {gpus:g} GPUs ({_source(each[1])}){_memory(memory)}"


def _source(setting: float | None) -> str:
    return "derived" if setting is None else "recipe"


def _memory(memory_gb: float | None) -> str:
    return "" if memory_gb is None else f", {memory_gb:g} GB (recipe)"


def _is_left_without_gpu(resources: Resources) -> bool:
    """Whether a stage with a model gets no GPU although the recipe does not set that."""
    if isinstance(resources, ActorResources):
        return resources.gpus_per_actor is None and not actors_that_fit(resources)[0]
    return isinstance(resources, TrainResources) and resources.gpus_per_worker is None and not worker_gpus(resources)
