"""The stage ``manifest`` of a generated data set, whose videos lie in the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.msrvtt import SENTENCES_FILE, TEST_FILE
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


@pytest.mark.parametrize(
    ("name", "content", "version"),
    [
        ("own.jsonl", '{"path": "a.mp4", "caption": "null, NaN and a dog"}', 3),
        ("own.jsonl", '{"path": "a.mp4", "caption": "a dog", "split": null}', 4),
        ("own.jsonl", '{"path": "a.mp4", "caption": NaN}\n{"path": "a.mp4", "caption": "a dog"}', 4),
        ("own.csv", 'path,caption\na.mp4,"a dog, a cat"\n', 3),
        ("questions.jsonl", '{"video": "a.mp4", "question": "what", "answer": "dog", "type": "a"}', 3),
        ("questions.jsonl", '{"video": "a.mp4", "question": "what", "answer": "dog", "type": NaN}', 4),
    ],
)
def test_only_annotations_that_are_read_otherwise_are_read_again(
    tmp_path: Path, name: str, content: str, version: int
) -> None:
    """What was made of all others stays."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / name).write_text(content)
    place = {"questions" if name.startswith("questions") else "annotations": str(tmp_path / name)}
    assert manifest_stage(DataConfig(dataset="captions_file", **place)).version == version  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "caption", "version"),
    [
        ("key,vid_key,video_id,sentence\nret0,msr0,video1,a dog runs\n", '"a dog"', 3),
        ("key,vid_key,video_id,sentence\nret0,msr0,video1,a dog runs\n", "null", 4),
        ("key,vid_key,video_id,sentence\nret0,msr0,video1,a dog, a cat\n", '"a dog"', 4),
        ("key,vid_key,video_id,sentence\nret0,msr0,video1,a dog\nret1,msr1,video1,a cat\n", '"a dog"', 4),
        ("key,video_id,sentence,sentence\nret0,video1,a dog,a cat\n", '"a dog"', 4),
    ],
)
def test_lists_that_were_cut_or_shortened_are_read_again(tmp_path: Path, test: str, caption: str, version: int) -> None:
    (tmp_path / SENTENCES_FILE).write_text(f'{{"sentences": [{{"video_id": "video0", "caption": {caption}}}]}}')
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\n")
    (tmp_path / TEST_FILE).write_text(test)
    (tmp_path / "video0.mp4").touch()
    data = DataConfig(dataset="msrvtt", annotations=str(tmp_path), videos=str(tmp_path))
    assert manifest_stage(data).version == version
