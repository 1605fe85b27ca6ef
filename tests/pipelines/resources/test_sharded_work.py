"""Work on shards gives the same rows and the same errors on Ray and in the process of the command."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from pipelines.recipe.resources import ActorResources, TaskResources
from pipelines.resources.sharded_work import _bundled, map_shards
from pipelines.workspace.errors import StorageError

SHARDS = [pa.table({"number": [1, 2]}), pa.table({"number": [3]})]
PLACES = [TaskResources(), TaskResources(max_tasks=0), ActorResources(max_actors=1), ActorResources(max_actors=0)]


def work_of(resources: TaskResources | ActorResources) -> tuple[Any, dict[str, Any] | None]:
    """Work that raises what its first shard asks for; inside, so that it travels by value."""

    def double(shard: pa.Table) -> pa.Table:
        numbers = shard.column("number").to_pylist()
        if 0 in numbers:
            raise PermissionError(13, "the disk says no")
        if -1 in numbers:
            raise ValueError("minus one is no number of videos")
        return pa.table({"doubled": [sum(numbers) * 2], "process": [os.getpid()]})

    class Double:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __call__(self, shard: pa.Table) -> pa.Table:
            return double(shard)

    return (Double, {"factor": 2}) if isinstance(resources, ActorResources) else (double, None)


def mapped(resources: TaskResources | ActorResources, shards: list[pa.Table]) -> list[dict[str, Any]]:
    work, constructor = work_of(resources)
    return list(map_shards(shards, work, name="double", resources=resources, constructor=constructor))


@pytest.mark.parametrize("resources", PLACES, ids=str)
def test_every_shard_has_its_summary_wherever_it_is_worked_on(
    resources: TaskResources | ActorResources, ray_local: Any
) -> None:
    rows = mapped(resources, SHARDS)
    assert sorted(row["doubled"] for row in rows) == [6, 6]
    assert all(row["seconds"] >= 0 for row in rows)
    here = resources in (TaskResources(max_tasks=0), ActorResources(max_actors=0))
    assert {row["process"] == os.getpid() for row in rows} == {here}


@pytest.mark.parametrize("resources", PLACES[:2], ids=str)
def test_small_shards_share_a_task_and_keep_their_own_summaries(resources: TaskResources, ray_local: Any) -> None:
    shards = [pa.table({"number": [number, 1]}) for number in range(1, 102)]
    rows = mapped(resources, shards)
    assert sorted(row["doubled"] for row in rows) == [2 * number + 2 for number in range(1, 102)]


@pytest.mark.parametrize(
    ("rows", "cores", "sizes"),
    [
        ([15] * 66 + [10], 2, {4: 16, 3: 1}),
        ([64] * 400, 2, {1: 400}),
        ([8] * 8, 2, {1: 8}),
        ([15] * 67, 64, {1: 67}),
        ([1] * 1000, 1, {64: 15, 40: 1}),
    ],
)
def test_no_task_has_more_rows_than_a_large_shard_and_every_core_has_tasks(
    rows: list[int], cores: int, sizes: dict[int, int]
) -> None:
    shards = [pa.table({"number": list(range(count))}) for count in rows]
    tasks = _bundled(shards, cores=cores)
    assert [shard for task in tasks for shard in task] == shards
    assert Counter(len(task) for task in tasks) == sizes


@pytest.mark.parametrize(
    ("resources", "number", "kind"),
    [
        (TaskResources(), 0, StorageError),
        (TaskResources(max_tasks=0), 0, StorageError),
        (TaskResources(max_tasks=0), -1, ValueError),
        (ActorResources(max_actors=1), -1, ValueError),
        (ActorResources(max_actors=0), 0, StorageError),
    ],
    ids=str,
)
def test_errors_of_the_work_are_those_of_the_stage(
    resources: TaskResources | ActorResources, number: int, kind: type[Exception], ray_local: Any
) -> None:
    with pytest.raises(kind, match="the disk says no" if kind is StorageError else "minus one is no number of videos"):
        mapped(resources, [pa.table({"number": [number]})])
