"""The stage ``manifest`` of a generated data set, whose videos lie in the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.shapes.data_set import write_annotations
from pipelines.stages.execution import execute_step
from pipelines.stages.manifest import manifest_stage
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage

SHAPES = ShapesConfig(train_videos=6, test_videos=2)


def make_graph(workspace: Path) -> Graph:
    """The stage between one that writes empty videos and one that only counts."""

    def shapes(context: StageContext) -> Mapping[str, int]:
        write_annotations(SHAPES, context.output)
        for number in range(8):
            context.output.write_bytes(f"videos/video{number}.mp4", b"1")
        return {"rows": 8, "errors": 0}

    def frames(context: StageContext) -> Mapping[str, int]:
        return {"rows": 8, "errors": 0}

    stages = [
        Stage(name="shapes", version=1, settings={}, inputs=(), run=shapes),
        manifest_stage(DataConfig(shapes=SHAPES, validation_videos=2)),
        Stage(name="frames", version=1, settings={}, inputs=("manifest",), run=frames),
    ]
    return Graph(Storage(str(workspace)), stages)


def execute(graph: Graph) -> list[str]:
    """Runs what is to do, and returns the names of the stages that did something."""
    outcomes = [execute_step(graph, step, tracker=StageTracker(), config=None) for step in graph.plan()]
    return [outcome.step.stage.name for outcome in outcomes if outcome.action == "done"]


def rows_of(graph: Graph) -> list[dict[str, Any]]:
    return graph.output("manifest").read_table(MANIFEST_FILE).to_pylist()  # type: ignore[no-any-return]


def test_a_workspace_that_was_moved_looks_for_its_videos_where_it_is(tmp_path: Path) -> None:
    before = make_graph(tmp_path / "old")
    assert execute(before) == ["shapes", "manifest", "frames"]
    rows, counts = rows_of(before), before.artifact("manifest").counts  # type: ignore[union-attr]
    (tmp_path / "old").rename(tmp_path / "new #1?")
    after = make_graph(tmp_path / "new #1?")
    states = {step.stage.name: (step.state, step.reason) for step in after.plan()}
    assert states["manifest"] == (
        "damaged",
        "the workspace was moved, and the addresses of the videos name its old place",
    )
    assert states["shapes"][0] == states["frames"][0] == "done"
    assert execute(after) == ["manifest"]
    # The addresses change and nothing else does: frames and labels are found by the keys.
    expected = [{**row, "uri": row["uri"].replace(f"{tmp_path}/old/", f"{tmp_path}/new #1?/")} for row in rows]
    assert rows_of(after) == expected
    assert all(Path(row["uri"]).is_file() for row in expected)
    assert after.artifact("manifest").counts == counts  # type: ignore[union-attr]
    assert execute(after) == []
    assert [path.name for path in tmp_path.iterdir()] == ["new #1?"]


@pytest.mark.parametrize("lost", ["manifest.parquet", "artifact.json"])
def test_a_manifest_that_is_damaged_is_read_anew(tmp_path: Path, lost: str) -> None:
    graph = make_graph(tmp_path)
    execute(graph)
    rows = rows_of(graph)
    if lost == "artifact.json":
        graph.output("manifest").write_bytes(lost, b"{")
    else:
        graph.output("manifest").delete(lost)
    assert execute(make_graph(tmp_path)) == ["manifest"]
    assert rows_of(graph) == rows


def test_a_forced_manifest_is_read_anew(tmp_path: Path) -> None:
    execute(make_graph(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    graph = make_graph(tmp_path / "new")
    steps = graph.plan(until_stage="manifest", force=["manifest"])
    keys = [row["key"] for row in rows_of(graph)]
    for step in steps:
        execute_step(graph, step, tracker=StageTracker(), config=None)
    assert all(Path(row["uri"]).is_file() for row in rows_of(graph))
    assert keys != [row["key"] for row in rows_of(graph)]
