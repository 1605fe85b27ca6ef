from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.stages.execution import execute_step
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import ARTIFACT, Counts
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.locks import held
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.runs import folder_size, forget_run, leftovers, read_runs, remove
from pipelines.workspace.shards import ShardPool, newest_rows
from pipelines.workspace.storage import Storage


@pytest.fixture(params=["local", "s3"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage(str(tmp_path / "workspace"))
        return
    storage = Storage(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")
    yield storage
    storage.delete("")


def _graph(workspace: Storage, *, first: int, second: int) -> Graph:
    """Two stages, of which the first also writes to a pool named after its setting."""

    def one(context: StageContext) -> Counts:
        context.workspace.write_bytes(f"shards/one-{first}/shard", b"x" * 100)
        context.output.write_bytes("result", b"1")
        return {"rows": 1}

    def two(context: StageContext) -> Counts:
        context.output.write_bytes("result", b"22")
        return {"rows": 2}

    return Graph(
        workspace,
        [
            Stage(name="one", version=1, settings={"n": first}, inputs=(), run=one, writes=f"one-{first}"),
            Stage(name="two", version=1, settings={"n": second}, inputs=("one",), run=two),
        ],
    )


def _pool_graph(workspace: Storage, keys: str) -> Graph:
    """A stage whose rows lie in a pool, a shard for every two keys."""
    pool = ShardPool(workspace.folder("shards/letters"), pa.schema([pa.field("key", pa.string(), nullable=False)]))

    def write(context: StageContext) -> Counts:
        since, generation = pool.generations(context.output, forced=context.forced)
        done = set(pool.index(since=since).column("key").to_pylist())
        left = [key for key in keys if key not in done]
        for start in range(0, len(left), 2):
            pool.commit([{"key": key} for key in left[start : start + 2]], generation=generation)
        rows = [row for row in newest_rows(pool.index(since=since)).to_pylist() if row["key"] in keys]
        context.output.write_table(INDEX_FILE, pa.Table.from_pylist(rows))
        return {"rows": len(rows)}

    stage = Stage(name="rows", version=1, settings={"keys": keys}, inputs=(), run=write, writes="letters")
    return Graph(workspace, [stage])


def _run(graph: Graph, force: Sequence[str] = ()) -> str:
    for step in graph.plan(force=force):
        execute_step(graph, step, tracker=StageTracker(), config={})
    return graph.record({"workspace": graph.workspace.uri})


@pytest.mark.slow
def test_a_run_is_recorded_once_with_what_it_needs(workspace: Storage) -> None:
    graph = _graph(workspace, first=1, second=1)
    run_id = _run(graph)
    assert _run(graph) == run_id
    (record,) = read_runs(workspace)
    assert record.run_id == run_id
    assert list(record.stages.items()) == list(graph.fingerprints.items())
    assert record.locks == {"one": "one-1", "two": f"two-{graph.fingerprints['two']}"}
    assert set(record.folders) == {
        f"one/{graph.fingerprints['one']}",
        f"two/{graph.fingerprints['two']}",
        "shards/one-1",
    }
    assert record.settings == {"workspace": workspace.uri}
    assert leftovers(workspace) == []


@pytest.mark.slow
def test_what_only_a_forgotten_run_needed_is_left_over(workspace: Storage) -> None:
    old, new = _graph(workspace, first=1, second=1), _graph(workspace, first=1, second=2)
    old_id, new_id = _run(old), _run(new)
    other = _graph(workspace, first=3, second=3)
    other_id = _run(other)
    forget_run(workspace, old_id)
    # The first stage is the new run's, too.
    assert [item.folder for item in leftovers(workspace)] == [f"two/{old.fingerprints['two']}"]
    forget_run(workspace, other_id)
    found = {item.folder: item for item in leftovers(workspace)}
    assert set(found) == {
        f"two/{old.fingerprints['two']}",
        f"one/{other.fingerprints['one']}",
        f"two/{other.fingerprints['two']}",
        "shards/one-3",
    }
    assert found["shards/one-3"].size_bytes == 100
    assert found["shards/one-3"].finished_at is None
    assert found[f"two/{old.fingerprints['two']}"].finished_at is not None
    remove(workspace, found.values())
    assert leftovers(workspace) == []
    assert [step.state for step in new.plan()] == ["done", "done"]
    assert [step.state for step in old.plan()] == ["done", "missing"]
    assert folder_size(workspace, "shards/one-3") == 0
    assert [record.run_id for record in read_runs(workspace)] == [new_id]


def test_a_damaged_document_does_not_keep_leftovers_from_being_removed(tmp_path: Path) -> None:
    workspace = Storage(str(tmp_path))
    graph = _graph(workspace, first=1, second=1)
    forget_run(workspace, _run(graph))
    graph.output("two").write_bytes(ARTIFACT, b"{")
    found = {item.folder.partition("/")[0]: item for item in leftovers(workspace)}
    assert found["one"].finished_at is not None and found["two"].finished_at is None
    remove(workspace, found.values())
    assert leftovers(workspace) == []


@pytest.mark.parametrize("document", [{"started_at": "now"}, [], 3, {"stages": 1}])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, document: object) -> None:
    workspace = Storage(str(tmp_path))
    workspace.write_json("runs/other.json", document)
    for read in (read_runs, leftovers):
        with pytest.raises(DamagedFileError, match=r"runs/other\.json is not the record of a run .*; remove it"):
            read(workspace)


@pytest.mark.slow
def test_nothing_is_removed_while_a_run_is_at_work(workspace: Storage) -> None:
    graph = _graph(workspace, first=1, second=1)
    forget_run(workspace, _run(graph))
    with held(workspace, "something"), pytest.raises(ValueError, match=r"is in use.*something"):
        remove(workspace, leftovers(workspace))
    assert graph.artifact("two") is not None


@pytest.mark.slow
def test_folders_that_are_no_artifacts_are_never_left_over(workspace: Storage) -> None:
    _run(_graph(workspace, first=1, second=1))
    workspace.write_bytes("logs/run.log", b"x")
    workspace.write_bytes("mlartifacts/1/model", b"x")
    workspace.write_bytes("my videos/summer/clip.mp4", b"x")
    assert leftovers(workspace) == []


@pytest.mark.slow
def test_an_unknown_run_cannot_be_forgotten(workspace: Storage) -> None:
    run_id = _run(_graph(workspace, first=1, second=1))
    with pytest.raises(ValueError, match=f"has no run 'nonsense'; its runs are: {run_id}"):
        forget_run(workspace, "nonsense")


@pytest.mark.slow
def test_shards_that_were_made_anew_are_left_over_once_nothing_points_at_them(workspace: Storage) -> None:
    first, second = _pool_graph(workspace, "abcdef"), _pool_graph(workspace, "abxy")
    _run(first)
    second_id = _run(second)
    pool = workspace.folder("shards/letters")
    before = set(pool.files())
    assert len(before) == 4
    assert leftovers(workspace) == []
    _run(first, force=["rows"])
    new = set(pool.files()) - before
    assert len(new) == 3
    assert {row["shard"] for row in first.output("rows").read_table(INDEX_FILE).to_pylist()} == new
    # The other run still points at the old shard of a and b; nobody does at those of c to f.
    of_second = {row["shard"] for row in second.output("rows").read_table(INDEX_FILE).to_pylist()}
    assert of_second < before
    (found,) = leftovers(workspace)
    assert (found.folder, set(found.shards)) == ("shards/letters", before - of_second)
    assert found.size_bytes == sum(len(pool.read_bytes(shard)) for shard in found.shards)
    remove(workspace, [found])
    assert set(pool.files()) == new | of_second
    assert leftovers(workspace) == []
    # Without that run nobody needs the old rows of a and b; those of x and y were never made anew.
    forget_run(workspace, second_id)
    (shard,) = {item.folder: item for item in leftovers(workspace)}["shards/letters"].shards
    assert pool.read_table(shard).column("key").to_pylist() == ["a", "b"]
