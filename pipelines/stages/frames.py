"""The stage ``frames``: every video decoded once, in shards, with what is missing done on a rerun."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial as partial_function
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.progress import Progress
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.sharded_work import SUMMARY, Work, map_shards
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest, plain
from pipelines.workspace.records import ERRORS, ERRORS_FILE, FRAMES, INDEX_FILE, MANIFEST_FILE, NOTES, NOTES_FILE
from pipelines.workspace.shards import ShardPool, newest_rows, shard_size, split_shards
from pipelines.workspace.storage import Storage


def frames_pool(workspace: Storage, recipe: Recipe) -> ShardPool:
    """Where frame shards lie: one pool per way of decoding, whatever the manifest."""
    return ShardPool(workspace.folder("shards", _pool_name(recipe)), FRAMES)


def _pool_name(recipe: Recipe) -> str:
    return f"frames-{digest(frames_settings(recipe))}"


def frames_settings(recipe: Recipe) -> Mapping[str, Any]:
    """What a stored frame depends on, besides its video."""
    settings: dict[str, Any] = plain(recipe.frames)
    # How long a decoder may take, and how much is grouped, does not change a frame.
    for name in ("timeout_s", "max_memory_gb", "videos_per_shard", "max_error_fraction", "retry_errors"):
        del settings[name]
    return settings


def frames_stage(recipe: Recipe) -> Stage:
    """Decodes every video of the manifest that is not in the pool yet."""
    config = recipe.frames

    def missing(manifest: Artifact, pool: ShardPool, since: int) -> pa.Table:
        rows = manifest.storage.read_table(MANIFEST_FILE, columns=["video_id", "uri", "key", "start_s", "end_s"])
        index = pool.index(["error_reason"], since=since)
        if config.retry_errors:
            index = index.filter(pc.is_null(index.column("error_reason")))
        return rows.filter(pc.invert(pc.is_in(rows.column("key"), index.column("key"))))

    def partial(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
        manifest, pool = inputs["manifest"], frames_pool(Storage(recipe.workspace), recipe)
        since, _ = pool.generations(output, forced=False)
        total, left = int(manifest.counts["rows"]), len(missing(manifest, pool, since))
        return f"{total - left:,} of {total:,} videos are done" if left < total else None

    def run(context: StageContext) -> Counts:
        manifest, pool = context.inputs["manifest"], frames_pool(context.workspace, recipe)
        since, generation = pool.generations(context.output, forced=context.forced and not config.retry_errors)
        total, left = int(manifest.counts["rows"]), missing(manifest, pool, since)
        work = Work()
        with Progress("frames", total=total, unit="videos", done=total - len(left)) as progress:
            for row in map_shards(
                split_shards(left, shard_size(total, config.videos_per_shard)),
                partial_function(_extract_shard, config, pool, generation),
                name="frames",
                resources=recipe.resources.decode,
            ):
                work.add(row)
                progress.advance(row["rows"], f"{row['units'] / max(row['rows'], 1):.1f} frames each")
        index = newest_rows(pool.index(["error_reason", "error_message", "decoder", "notes"], since=since))
        return {**_commit_frames(context, manifest, index, config.max_error_fraction), **work.counts("frames")}

    return Stage(
        name="frames",
        version=2,
        settings=frames_settings(recipe),
        inputs=("manifest",),
        run=run,
        partial=partial,
        lost=lambda artifact: frames_pool(Storage(recipe.workspace), recipe).lost_words(artifact.storage),
        writes=_pool_name(recipe),
    )


def _extract_shard(config: FramesConfig, pool: ShardPool, generation: int, videos: pa.Table) -> pa.Table:
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


def _commit_frames(context: StageContext, manifest: Artifact, index: pa.Table, max_error_fraction: float) -> Counts:
    """Writes the index of the manifest's frames, the table of its errors and that of its notes."""
    rows = manifest.storage.read_table(MANIFEST_FILE, columns=["video_id", "uri", "key", "split"])
    found = rows.join(index, "key", join_type="inner").sort_by("video_id")
    bad = pc.is_valid(found.column("error_reason"))
    failed = found.filter(bad)
    errors = pa.table(
        {
            "video_id": failed.column("video_id"),
            "uri": failed.column("uri"),
            "stage": pa.array(["frames"] * len(failed), pa.string()),
            "reason": failed.column("error_reason"),
            "message": failed.column("error_message"),
        },
    ).cast(ERRORS)
    context.output.write_table(ERRORS_FILE, errors)
    _refuse_many(errors, len(rows), max_error_fraction)
    good = found.filter(pc.invert(bad))
    context.output.write_table(INDEX_FILE, good.select(["video_id", "key", "split", "shard", "row", "decoder"]))
    counts: dict[str, int | float] = {"rows": len(good), "errors": len(errors)}
    for item in pc.value_counts(good.column("decoder")).to_pylist():
        counts[f"decoded_by_{item['values']}"] = item["counts"]
    notes = _notes(good)
    context.output.write_table(NOTES_FILE, notes)
    for name, table in (("errors", errors), ("notes", notes)):
        for item in pc.value_counts(table.column("reason")).to_pylist():
            counts[f"{name}_{item['values']}"] = item["counts"]
    return counts


def _notes(videos: pa.Table) -> pa.Table:
    """A row for every line of ``notes``."""
    noted = videos.filter(pc.is_valid(videos.column("notes"))).select(["video_id", "uri", "notes"]).to_pylist()
    lines = [(row, line.partition(": ")) for row in noted for line in row["notes"].splitlines()]
    return pa.Table.from_pylist(
        [
            {
                "video_id": row["video_id"],
                "uri": row["uri"],
                "stage": "frames",
                "reason": reason,
                "message": message,
            }
            for row, (reason, _, message) in lines
        ],
        schema=NOTES,
    )


def _refuse_many(errors: pa.Table, total: int, max_fraction: float) -> None:
    if len(errors) > max_fraction * total:
        first = errors.slice(0, 3).to_pylist()
        examples = "; ".join(f"{row['video_id']}: {row['reason']}, {row['message']}" for row in first)
        raise ValueError(
            f"{len(errors):,} of {total:,} videos could not be decoded ({examples}); frames.max_error_fraction allows "
            f"{max_fraction:.1%}. Mend the files, or raise frames.max_error_fraction, and run the same command again: "
            "the frames of the others are kept"
        )
