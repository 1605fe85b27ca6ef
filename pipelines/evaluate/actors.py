"""Actors that hold a model and work on blocks of items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from pipelines.recipe.resources import ActorResources
from pipelines.resources.ray_session import actors_that_fit, ray_options


def start_actors(kind: type, *arguments: Any, resources: ActorResources, most: int) -> list[Any]:
    """As many actors of a class as fit on the cluster, at least one and no more than ``most``."""
    gpus, fitting = actors_that_fit(resources)
    # A call that dies with its actor is made again on the restarted one.
    options = ray_options(resources.cpus_per_actor, gpus, resources.memory_gb_per_actor)
    actor = ray.remote(**options, max_restarts=3, max_task_retries=3)(kind)
    return [actor.remote(*arguments) for _ in range(max(1, min(fitting, most)))]


def blocks(count: int, size: int) -> list[range]:
    """Positions 0 to ``count`` in blocks of ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def as_finished(references: Sequence[Any]) -> Iterator[int]:
    """Positions of ``references`` in the order in which they become ready.

    Raises:
        ray.exceptions.RayError: a call failed.
    """
    positions = {reference: position for position, reference in enumerate(references)}
    waiting = list(references)
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        for reference in ready:
            yield positions[reference]
