"""Actors that hold a model and work on blocks of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.recipe.resources import ActorResources
from pipelines.resources.device import with_gpus
from pipelines.resources.ray_session import actors_that_fit, ray_options, works_here


def start_actors(kind: type, *arguments: Any, resources: ActorResources, most: int) -> list[Any]:
    """As many actors of a class as fit on the cluster, at least one and no more than ``most``.

    If the recipe says 0, one object of this process takes their place, and is called in the same way.
    """
    if works_here(resources):
        # An object chooses its device when it is made, so the limit need not hold longer.
        with with_gpus(resources.gpus_per_actor):
            return [_Here(kind(*arguments))]
    gpus, fitting = actors_that_fit(resources)
    # A call whose actor dies is repeated on the restarted actor.
    options = ray_options(resources.cpus_per_actor, gpus, resources.memory_gb_per_actor)
    actor = ray.remote(**options, max_restarts=3, max_task_retries=3)(kind)
    return [actor.remote(*arguments) for _ in range(max(1, min(fitting, most)))]


def stop_actors(actors: Sequence[Any]) -> None:
    """Ends what :func:`start_actors` started."""
    for actor in actors:
        if not isinstance(actor, _Here):
            ray.kill(actor)


class _Here:
    """An object of this process with the interface of an actor's handle.

    Its calls return a ``_Result`` in place of a reference, and take such results as arguments.
    """

    def __init__(self, member: Any) -> None:
        self._member = member

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self._member, name))


class _Call:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> _Result:
        # The work is done now, and not when its result is asked for.
        return _Result(self._method(*(one.value if isinstance(one, _Result) else one for one in arguments)))


# Without eq each is equal to itself alone, and can be the key of a dictionary (as_finished) whatever it holds.
@dataclass(frozen=True, eq=False)
class _Result:
    """In the place of a reference: what a call in this process has returned."""

    value: Any


def result_of(reference: Any) -> Any:
    """What the call of an actor returned, waiting for it.

    Raises:
        ray.exceptions.RayError: the call failed.
    """
    return reference.value if isinstance(reference, _Result) else ray.get(reference)


def blocks(count: int, size: int) -> list[range]:
    """Positions 0 to ``count`` in blocks of ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def as_finished(references: Sequence[Any]) -> Iterator[int]:
    """Positions of ``references`` in the order in which they become ready.

    Raises:
        ray.exceptions.RayError: a call failed.
    """
    positions = {reference: position for position, reference in enumerate(references)}
    waiting = []
    for reference in references:
        if isinstance(reference, _Result):
            yield positions[reference]
        else:
            waiting.append(reference)
    while waiting:
        # Features are for other actors alone. What is read here is fetched when it is (result_of).
        ready, waiting = ray.wait(waiting, num_returns=1, fetch_local=False)
        for reference in ready:
            yield positions[reference]
