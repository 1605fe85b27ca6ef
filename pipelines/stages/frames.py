"""The stage ``frames``: every video is decoded once, in shards; a rerun decodes only what is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.sharded_work import SUMMARY
from pipelines.stages.pooled import PooledStage, ShardJob, with_version
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest
from pipelines.workspace.records import ERRORS, ERRORS_FILE, FRAMES, INDEX_FILE, MANIFEST_FILE, NOTES_FILE
from pipelines.workspace.shards import SHARDS, ShardPool, shard_size
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

VERSION = 3
"""A constant besides the class, because stages that only read the pool need its name and should not depend on the
class."""


def frames_stage(recipe: Recipe) -> Stage:
    """Decodes every video of the manifest that is not in the pool yet."""
    return FramesStage(recipe).stage()


def frames_pool(workspace: Storage, recipe: Recipe) -> ShardPool:
    """Where frame shards lie: one pool per way of decoding, whatever the manifest."""
    return ShardPool(workspace.folder(SHARDS, f"frames-{digest(frames_identity(recipe))}"), FRAMES)


def frames_identity(recipe: Recipe) -> Mapping[str, Any]:
    """What a stored frame depends on besides its video, including the version of the code that made it."""
    return with_version(frames_settings(recipe), VERSION)


def frames_settings(recipe: Recipe) -> Mapping[str, Any]:
    """What a stored frame depends on, besides its video."""
    return counting(recipe.frames)


class FramesStage(PooledStage):
    """Needs the manifest; writes where the frames of each of its videos lie, and the tables of errors and notes."""

    name = "frames"
    version = VERSION
    inputs = ("manifest",)
    unit = "frames"
    columns = ("error_reason", "error_message", "decoder", "notes")

    @property
    def settings(self) -> Mapping[str, Any]:
        return frames_settings(self.recipe)

    def pool(self, workspace: Storage) -> ShardPool:
        return frames_pool(workspace, self.recipe)

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        columns = ["video_id", "uri", "key", "split", "start_s", "end_s"]
        return inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=columns)

    @property
    def repeats_errors(self) -> bool:
        return self.recipe.frames.retry_errors

    def done(self, pool: ShardPool, since: int) -> pa.Table:
        index = pool.index(["error_reason"], since=since)
        return index.filter(pc.is_null(index.column("error_reason"))) if self.recipe.frames.retry_errors else index

    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        config = self.recipe.frames
        return ShardJob(
            work=partial(extract_shard, config, pool, generation),
            resources=self.recipe.resources.decode,
            videos_per_shard=shard_size(total, config.videos_per_shard),
        )

    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        # Sorted, because the rows of a join come in any order.
        found = wanted.join(found, "key", join_type="inner").sort_by("video_id")
        return commit_frames(context.output, found, self.recipe.frames.max_error_fraction)


def extract_shard(config: FramesConfig, pool: ShardPool, generation: int, videos: pa.Table) -> pa.Table:
    """Decodes the videos of one shard and commits it; returns one summary row."""
    from pipelines.video.extraction import make_extract_frames

    rows = list(map(make_extract_frames(config), videos.to_pylist()))
    size = pool.commit(rows, generation=generation)
    summary = {
        "rows": len(rows),
        "errors": sum(row["error_reason"] is not None for row in rows),
        "units": sum(len(row["frames"]) for row in rows),
        "bytes": size,
    }
    return pa.Table.from_pylist([summary], schema=SUMMARY)


def commit_frames(output: Storage, found: pa.Table, max_error_fraction: float) -> Counts:
    """Writes the index of the frames and the tables of errors and notes among the videos that were ``found``."""
    bad = pc.is_valid(found.column("error_reason"))
    failed = found.filter(bad).select(["video_id", "uri", "error_reason", "error_message"])
    errors = _told((row, row["error_reason"], row["error_message"]) for row in failed.to_pylist())
    # Written before too many are refused, so that all reasons can be looked up.
    output.write_table(ERRORS_FILE, errors)
    _refuse_many(errors, len(found), max_error_fraction)
    good = found.filter(pc.invert(bad))
    output.write_table(INDEX_FILE, good.select(["video_id", "key", "split", "shard", "row", "decoder"]))
    counts: dict[str, int | float] = {"rows": len(good), "errors": len(errors)}
    for item in pc.value_counts(good.column("decoder")).to_pylist():
        counts[f"decoded_by_{item['values']}"] = item["counts"]
    notes = _notes(good)
    output.write_table(NOTES_FILE, notes)
    _tell_of_detours(notes, len(good))
    for name, table in (("errors", errors), ("notes", notes)):
        for item in pc.value_counts(table.column("reason")).to_pylist():
            counts[f"{name}_{item['values']}"] = item["counts"]
    return counts


def _tell_of_detours(notes: pa.Table, videos: int) -> None:
    """Says how often PyAV took over from an optional decoder, which may be missing on a node, and the first reason."""
    optional = pa.array(["not_torchcodec", "not_nvdec"])
    detours = notes.filter(pc.is_in(notes.column("reason"), value_set=optional))
    if len(detours):
        first = detours.column("message")[0].as_py()
        logger.warning("frames: %s of %s videos: %s (%s has all reasons)", len(detours), videos, first, NOTES_FILE)


def _notes(videos: pa.Table) -> pa.Table:
    """A row for every line of ``notes``."""
    noted = videos.filter(pc.is_valid(videos.column("notes"))).select(["video_id", "uri", "notes"]).to_pylist()
    lines = [(row, line.partition(": ")) for row in noted for line in row["notes"].splitlines()]
    return _told((row, reason, message) for row, (reason, _, message) in lines)


def _told(rows: Iterable[tuple[Mapping[str, Any], str, str]]) -> pa.Table:
    """A row for every video with a reason and a message."""
    return pa.Table.from_pylist(
        [
            {
                "video_id": video["video_id"],
                "uri": video["uri"],
                "stage": "frames",
                "reason": reason,
                "message": message,
            }
            for video, reason, message in rows
        ],
        schema=ERRORS,
    )


def _refuse_many(errors: pa.Table, total: int, max_fraction: float) -> None:
    if len(errors) > max_fraction * total:
        first = errors.slice(0, 3).to_pylist()
        examples = "; ".join(f"{row['video_id']}: {row['reason']}, {row['message']}" for row in first)
        raise ValueError(
            f"{len(errors):,} of {total:,} videos could not be decoded ({examples}); frames.max_error_fraction allows "
            f"{max_fraction:.1%}. Repair the files, or raise frames.max_error_fraction, and run the same command "
            "again: the frames of the others are kept"
        )
