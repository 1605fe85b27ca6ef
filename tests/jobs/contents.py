"""What the artifacts of a run point at, to compare runs row by row."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.video.extraction import make_extract_frames
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

LabelRows = dict[tuple[str, int], dict[str, Any]]


def frame_rows(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Every column of the frames of every video that has some."""
    rows = _rows(recipe, "frames", frames_pool(Storage(recipe.workspace), recipe))
    return {row["video_id"]: row for row in rows}


def frame_rows_made_here(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The same, decoded one by one in this process."""
    manifest = make_graph(recipe).artifact("manifest")
    assert manifest is not None
    rows = map(make_extract_frames(recipe.frames), manifest.storage.read_table(MANIFEST_FILE).to_pylist())
    return {row["video_id"]: row for row in rows if row["error_reason"] is None}


def label_rows(recipe: Recipe) -> LabelRows:
    """Every column of the labels of every pair of a video and the number of its caption."""
    rows = _rows(recipe, "labels", labels_pool(Storage(recipe.workspace), recipe))
    return {(row["video_id"], row["caption_index"]): row for row in rows}


def assert_labels_equal_up_to_rounding(found: LabelRows, expected: LabelRows, recipe: Recipe) -> None:
    """The rows hold the same labels, made in batches of other pairs.

    Its batch gives a pair's matrices another shape, so that float32 rounds in another way; labels are as
    large as the scale of the similarities.
    """
    assert found.keys() == expected.keys()
    for pair, row in expected.items():
        for name, value in row.items():
            scale = recipe.model.game.similarity_scale if name == "interaction" else 1.0
            assert found[pair][name] == (
                pytest.approx(value, rel=0, abs=2e-6 * scale) if isinstance(value, list) else value
            )


def _rows(recipe: Recipe, stage: str, pool: ShardPool) -> list[dict[str, Any]]:
    artifact = make_graph(recipe).artifact(stage)
    assert artifact is not None, f"{stage} is not finished"
    index = artifact.storage.read_table(INDEX_FILE, columns=["shard", "row"]).to_pylist()
    tables = {shard: pool.storage.read_table(shard) for shard in {row["shard"] for row in index}}
    rows = [tables[row["shard"]].slice(row["row"], 1).to_pylist()[0] for row in index]
    assert len(rows) == artifact.counts["rows"]
    return rows


def shards(pool: ShardPool) -> dict[str, str]:
    """The committed shards of a pool, each with what changes when it is written again."""
    infos = pool.storage.filesystem.get_file_info([pool.storage.path(name) for name in pool.storage.files()])
    return {info.base_name: str(info.mtime_ns) for info in infos}


def videos_in(pool: ShardPool, names: set[str]) -> list[str]:
    """The ids of the videos in shards of a pool."""
    return sorted(
        video for name in names for video in pool.storage.read_table(name, columns=["video_id"])["video_id"].to_pylist()
    )
