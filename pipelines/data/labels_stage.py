"""The stage ``labels``: interaction labels of the training and validation pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_pool, frames_settings
from pipelines.progress import Progress
from pipelines.ray_session import actors_that_fit
from pipelines.records import INDEX_FILE, LABELS, MANIFEST_FILE
from pipelines.shards import ShardPool, map_shards, split_shards
from pipelines.stages import Counts, Stage, StageContext, digest, plain
from pipelines.storage import Storage


def labels_pool(workspace: Storage, recipe: Recipe) -> ShardPool:
    """Where label shards lie: one pool per kind of label, model and way of decoding."""
    return ShardPool(workspace.folder("shards", _pool_name(recipe)), LABELS)


def _pool_name(recipe: Recipe) -> str:
    return f"labels-{digest({'labels': _labels_settings(recipe), 'frames': frames_settings(recipe)})}"


def _labels_settings(recipe: Recipe) -> Mapping[str, Any]:
    settings = plain(recipe.labels)
    for name in ("batch_size", "videos_per_shard"):
        del settings[name]
    model = plain(recipe.model)
    # The loss and the teacher of the retrieval model have no part in the features.
    del model["loss"], model["level_rates"], model["game"]["teacher"]
    return {**settings, "model": model, "seed": recipe.seed}


def labels_stage(recipe: Recipe) -> Stage:
    """Labels every (caption, video) pair of the training and validation splits."""
    labels = recipe.labels

    def run(context: StageContext) -> Counts:
        from pipelines.data.labels import LabelSettings, LabelShard

        pool = labels_pool(context.workspace, recipe)
        if context.forced:
            pool.storage.delete("")
        rows = _wanted(context, labels.captions_per_video)
        done = set(pool.index().column("key").to_pylist())
        left = pa.Table.from_pylist([row for row in rows if row["key"] not in done])
        gpus, actors = actors_that_fit(recipe.resources.labels)
        with Progress("labels", total=len(rows), unit="videos", done=len(rows) - len(left)) as progress:
            for summary in map_shards(
                split_shards(left, labels.videos_per_shard),
                LabelShard,
                constructor={
                    "settings": LabelSettings(recipe.model, labels, recipe.seed),
                    "frames_pool": frames_pool(context.workspace, recipe).storage,
                    "pool": pool,
                },
                actors=actors,
                cpus=recipe.resources.labels.cpus_per_actor,
                gpus=gpus,
            ):
                progress.advance(summary["rows"], f"{summary['units'] / max(summary['rows'], 1):.1f} pairs each")
        splits = {row["key"]: row["split"] for row in rows}
        found = pool.index(["video_id", "caption_index"])
        found = found.filter(pc.is_in(found.column("key"), pa.array(list(splits))))
        found = found.append_column("split", pa.array([splits[key] for key in found.column("key").to_pylist()]))
        context.output.write_table(
            INDEX_FILE, found.sort_by([("video_id", "ascending"), ("caption_index", "ascending")])
        )
        train = pc.sum(pc.equal(found.column("split"), "train")).as_py() or 0
        return {"rows": len(found), "errors": 0, "videos": len(rows), "train_pairs": train}

    return Stage(
        name="labels",
        version=1,
        settings=_labels_settings(recipe),
        inputs=("manifest", "frames"),
        run=run,
        writes=_pool_name(recipe),
    )


def _wanted(context: StageContext, captions_per_video: int | None) -> list[dict[str, Any]]:
    """Videos of the training and validation splits with frames and captions, by id."""
    from pipelines.data.labels import label_key

    manifest = context.inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["video_id", "captions"])
    captions = dict(zip(*(manifest.column(name).to_pylist() for name in ("video_id", "captions")), strict=True))
    index = context.inputs["frames"].storage.read_table(INDEX_FILE)
    wanted = index.filter(pc.is_in(index.column("split"), pa.array(["train", "val"]))).sort_by("video_id")
    rows = [{**row, "captions": captions[row["video_id"]][:captions_per_video]} for row in wanted.to_pylist()]
    return [{**row, "key": label_key(row["key"], row["captions"])} for row in rows if row["captions"]]
