"""Work on shards with Ray Data, and what it tells the driver."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.recipe.resources import ActorResources, TaskResources
from pipelines.resources.placement import check_new_nodes
from pipelines.resources.ray_session import actors_that_fit, cluster_cpus, ray_options, works_here
from pipelines.workspace.errors import StorageError

SUMMARY = pa.schema([("rows", pa.int64()), ("errors", pa.int64()), ("units", pa.int64()), ("bytes", pa.int64())])
"""What is told to the driver about a shard that was written; ``units`` counts frames or pairs."""

_ROWS_PER_TASK, _TASKS_PER_CORE = 64, 8
"""Ray Data takes up to a tenth of a second to give a free core its next task. So small shards share a task, up to
``_ROWS_PER_TASK`` rows together, and at least about ``_TASKS_PER_CORE`` tasks are left for each core."""

_SHARD = "shard of the task"
"""Column that tells shards of a task apart."""


@dataclass
class Work:
    """What the tasks of a stage did in this run, all of them together."""

    rows: int = 0
    units: int = 0
    bytes: int = 0
    seconds: float = 0.0
    """Sum over all tasks: two tasks that ran in parallel for a minute took two minutes."""

    def add(self, summary: Mapping[str, Any]) -> None:
        """Counts one task."""
        self.rows += summary["rows"]
        self.units += summary["units"]
        self.bytes += summary["bytes"]
        self.seconds += summary["seconds"]

    def counts(self, unit: str) -> dict[str, int | float]:
        """For the artifact; a larger run is planned from them (benchmarks/plan_cluster.py)."""
        return {
            "work/rows": self.rows,
            f"work/{unit}": self.units,
            "work/bytes": self.bytes,
            "work/seconds": round(self.seconds, 3),
        }


def map_shards(
    shards: Sequence[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    *,
    name: str,
    resources: TaskResources | ActorResources,
    constructor: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs ``work`` on every shard with Ray Data, or in this process, and yields its summary rows as they come.

    A row has the ``seconds`` that the work on its shard took, besides what ``work`` returned.

    Args:
        shards: one block of rows each; a shard is one call of ``work``.
        work: a function (run as tasks) or a class whose instances are callable (an actor pool).
        name: what Ray's dashboard calls the tasks or actors.
        resources: of a task, or of an actor; with at most 0 of them, this process does the work.
        constructor: keyword arguments of the class.

    Raises:
        PlacementError: a node that joined the cluster meanwhile does not see the folders of the run.
        StorageError: ``work`` raised an ``OSError``.
        ValueError: ``work`` raised one.
    """
    if not shards:
        return
    if works_here(resources):
        yield from _map_here(shards, work, resources, constructor or {})
        return
    for row in _map_on_ray(shards, work, name, resources, constructor or {}):
        check_new_nodes()
        if "failure" in row:
            failure = StorageError if row["failure"] == "storage" else ValueError
            raise failure(row["message"]) from _RemoteError(row["traceback"])
        yield row


def _map_here(
    shards: Sequence[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    resources: TaskResources | ActorResources,
    constructor: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    function: Callable[[pa.Table], pa.Table] = work
    try:
        if isinstance(work, type) and isinstance(resources, ActorResources):
            from pipelines.resources.device import with_gpus  # loads PyTorch, which no task needs

            # Around the constructor alone, because that is where a model gets its device.
            with with_gpus(resources.gpus_per_actor):
                function = work(**constructor)
        for shard in shards:
            yield from _timed(function, shard).to_pylist()
    except OSError as error:
        raise StorageError(str(error)) from error


def _map_on_ray(
    shards: Sequence[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    name: str,
    resources: TaskResources | ActorResources,
    constructor: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    import ray.data

    tasks = [[shard] for shard in shards]
    if isinstance(resources, TaskResources):
        # A task may ask for no CPU at all.
        tasks = _bundled(shards, cores=cluster_cpus() / max(resources.cpus_per_task, 1e-9))
    blocks = ray.data.from_arrow([_joined(task) for task in tasks])
    # Without a batch size every call gets a whole block, which is what a task does.
    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    if isinstance(resources, ActorResources):
        gpus, actors = actors_that_fit(resources)
        options |= ray_options(resources.cpus_per_actor, gpus, resources.memory_gb_per_actor)
        options["fn_constructor_kwargs"] = {"work": work, "constructor": constructor}
        options["compute"] = ray.data.ActorPoolStrategy(
            min_size=min(resources.min_actors, len(shards)), max_size=min(actors, len(shards))
        )
        # Ray's dashboard shows the name of the class, so every stage has a class with its own name.
        summaries = blocks.map_batches(type(name, (_ReportingActor,), {}), **options)
    else:
        options |= ray_options(resources.cpus_per_task, resources.gpus_per_task, resources.memory_gb_per_task)
        options["compute"] = ray.data.TaskPoolStrategy(size=resources.max_tasks)
        summaries = blocks.map_batches(_reporting_task(work, name), **options)
    yield from summaries.iter_rows()


def _bundled(shards: Sequence[pa.Table], *, cores: float) -> list[list[pa.Table]]:
    """The shards of each task."""
    most = int(len(shards) / (_TASKS_PER_CORE * max(cores, 1.0)))
    tasks: list[list[pa.Table]] = []
    for shard in shards:
        last = tasks[-1] if tasks else []
        if last and len(last) < most and len(shard) + sum(map(len, last)) <= _ROWS_PER_TASK:
            last.append(shard)
        else:
            tasks.append([shard])
    return tasks


def _joined(shards: Sequence[pa.Table]) -> pa.Table:
    """Shards in one block."""
    numbered = [
        shard.append_column(_SHARD, pa.array([number] * len(shard), pa.int32())) for number, shard in enumerate(shards)
    ]
    return pa.concat_tables(numbered)


def _separated(block: pa.Table) -> Iterator[pa.Table]:
    """The shards of a block."""
    numbers, rows = block.column(_SHARD), block.drop_columns([_SHARD])
    for number in numbers.unique():
        yield rows.filter(pc.equal(numbers, number))


class _RemoteError(Exception):
    """The traceback from another process, for the log."""


class _ReportingActor:
    """An instance of ``work``, made on the actor; see ``_reporting``."""

    def __init__(self, work: type, constructor: dict[str, Any]) -> None:
        # A constructor that fails becomes the result of every shard, for the reason given in _reporting.
        try:
            self._work: Callable[[pa.Table], pa.Table] = work(**constructor)
        except (OSError, ValueError) as error:
            failure = _failure(error)
            self._work = lambda _: failure

    def __call__(self, block: pa.Table) -> pa.Table:
        return _reporting(self._work, block)


def _reporting_task(work: Callable[[pa.Table], pa.Table], name: str) -> Callable[[pa.Table], pa.Table]:
    def task(block: pa.Table) -> pa.Table:
        return _reporting(work, block)

    task.__name__ = name
    return task


def _reporting(work: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    """The summaries of a block's shards, or what went wrong, as rows: Ray would hide the message of an exception in its
    own."""
    try:
        return pa.concat_tables([_timed(work, shard) for shard in _separated(block)])
    except (OSError, ValueError) as error:
        return _failure(error)


def _timed(work: Callable[[pa.Table], pa.Table], shard: pa.Table) -> pa.Table:
    started = time.monotonic()
    summary = work(shard)
    return summary.append_column("seconds", pa.array([time.monotonic() - started] * len(summary)))


def _failure(error: Exception) -> pa.Table:
    return pa.table(
        {
            "failure": ["storage" if isinstance(error, OSError) else "value"],
            "message": [str(error)],
            "traceback": ["".join(traceback.format_exception(error))],
        }
    )
