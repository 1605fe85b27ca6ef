"""A stage over keyed shards with real tasks: what is missing is made, and what did not come back is made once more."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TaskResources
from pipelines.resources.sharded_work import SUMMARY
from pipelines.stages.execution import Outcome, execute_step
from pipelines.stages.plan import Graph
from pipelines.stages.pooled import PooledStage, ShardJob, with_version
from pipelines.stages.stage import StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import Artifact, Counts
from pipelines.workspace.errors import StorageError
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False), ("letter", pa.string())])


@dataclass(frozen=True)
class Letters(PooledStage):
    """Makes a row for each letter, three in a shard; shards with a letter of ``damaged`` are cut off so many times."""

    letters: str
    damaged: Mapping[str, int]

    name = "letters"
    version = 1
    inputs = ()
    unit = "letters"
    columns = ("letter",)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"letters": self.letters}

    def pool(self, workspace: Storage) -> ShardPool:
        number = len(with_version({}, self.version))
        return ShardPool(workspace.folder("shards", f"letters-{number}"), SCHEMA)

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        return pa.table({"video_id": [*self.letters], "key": [*self.letters]})

    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        damaged, marks = dict(self.damaged), Path(self.recipe.workspace)

        # Inside, so that it travels to the tasks by value.
        def write(videos: pa.Table) -> pa.Table:
            keys = videos.column("key").to_pylist()
            size = pool.commit([{"key": key, "letter": key} for key in keys], generation=generation)
            (shard,) = (row["shard"] for row in pool.index(since=generation).to_pylist() if row["key"] == keys[0])
            for key in keys:
                mark = marks / f"{key}.damaged"
                times = len(mark.read_text()) if mark.exists() else 0
                if times < damaged.get(key, 0):
                    mark.write_text("x" * (times + 1))
                    pool.storage.write_bytes(shard, pool.storage.read_bytes(shard)[:100])
            summary = {"rows": len(keys), "errors": 0, "units": len(keys), "bytes": size}
            return pa.Table.from_pylist([summary], schema=SUMMARY)

        return ShardJob(work=write, resources=TaskResources(), videos_per_shard=3)

    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        context.output.write_table(INDEX_FILE, found)
        return {"rows": len(found), "errors": 0}


def execute(stage: Letters) -> Outcome:
    graph = Graph(Storage(stage.recipe.workspace), [stage.stage()])
    (step,) = graph.plan()
    return execute_step(graph, step, tracker=StageTracker(), config={})


def made(outcome: Outcome) -> list[str]:
    return sorted(outcome.artifact.storage.read_table(INDEX_FILE).column("letter").to_pylist())


@pytest.fixture
def recipe(tmp_path: Path, ray_local: Any) -> Recipe:
    return Recipe(workspace=str(tmp_path))


def test_what_is_missing_is_made_and_what_is_lost_is_noticed(recipe: Recipe) -> None:
    first = execute(Letters(recipe, "abcdefgh", {}))
    assert made(first) == [*"abcdefgh"] and first.artifact.counts["work/rows"] == 8
    more = Letters(recipe, "abcdefghij", {})
    pool = more.pool(Storage(recipe.workspace))
    before = pool.storage.files()
    graph = Graph(Storage(recipe.workspace), [more.stage()])
    assert graph.plan()[0].reason == "8 of 10 videos are done"
    second = execute(more)
    assert made(second) == [*"abcdefghij"] and second.artifact.counts["work/rows"] == 2
    assert set(before) < set(pool.storage.files())
    assert graph.plan()[0].state == "done"
    pool.storage.delete(before[0])
    assert (graph.plan()[0].state, graph.plan()[0].reason) == ("damaged", "1 of its shards are missing")
    assert made(execute(more)) == [*"abcdefghij"]


def test_a_shard_that_is_damaged_before_the_commit_is_made_again(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = execute(Letters(recipe, "abcdefgh", {"e": 1}))
    assert made(outcome) == [*"abcdefgh"]
    assert outcome.artifact.counts["work/rows"] == 8 + 3
    (message,) = (message for message in caplog.messages if "did not" in message or "are not in" in message)
    assert "3 of 8 videos are not in" in message and "(d, e, f)" in message and "made again" in message


def test_a_stage_does_not_commit_what_is_not_there(recipe: Recipe) -> None:
    stage = Letters(recipe, "abcdefgh", {"b": 2, "g": 1})
    with pytest.raises(StorageError, match=r"letters: 3 of 8 videos are not in .*\(a, b, c\), although they were made"):
        execute(stage)
    graph = Graph(Storage(recipe.workspace), [stage.stage()])
    assert graph.artifact("letters") is None
    assert (graph.plan()[0].state, graph.plan()[0].reason) == ("partial", "5 of 8 videos are done")
    assert made(execute(stage)) == [*"abcdefgh"], "the same command again makes the rest"


def test_raising_the_version_makes_all_rows_again(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Letters(recipe, "abcd", {})
    execute(stage)
    monkeypatch.setattr(Letters, "version", 2)
    graph = Graph(Storage(recipe.workspace), [stage.stage()])
    assert graph.plan()[0].reason == "the stage's code changed (version 1 → 2)"
    again = execute(stage)
    assert made(again) == [*"abcd"] and again.artifact.counts["work/rows"] == 4


def test_the_first_version_adds_nothing_to_the_name_of_a_pool() -> None:
    settings = {"fps": 1}
    assert with_version(settings, 1) == settings
    assert with_version(settings, 2) != with_version(settings, 3) != settings
