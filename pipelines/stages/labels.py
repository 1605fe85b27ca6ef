"""The stage ``labels``: interaction labels of the training and validation pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.resources.sharded_work import Work, map_shards
from pipelines.stages.frames import frames_pool, frames_settings
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest
from pipelines.workspace.records import INDEX_FILE, LABELS, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool, newest_rows, split_shards
from pipelines.workspace.storage import Storage


def labels_pool(workspace: Storage, recipe: Recipe) -> ShardPool:
    """Where label shards lie: one pool per kind of label, model and way of decoding."""
    return ShardPool(workspace.folder("shards", _pool_name(recipe)), LABELS)


def _pool_name(recipe: Recipe) -> str:
    return f"labels-{digest({'labels': _labels_settings(recipe), 'frames': frames_settings(recipe)})}"


def _labels_settings(recipe: Recipe) -> Mapping[str, Any]:
    return {**counting(recipe.labels), "model": counting(recipe.model, "features"), "seed": recipe.seed}


def labels_stage(recipe: Recipe) -> Stage:
    """Labels every (text, video) pair of the training and validation splits."""
    labels = recipe.labels

    def missing(rows: Sequence[dict[str, Any]], pool: ShardPool, since: int) -> list[dict[str, Any]]:
        done = set(pool.index(since=since).column("key").to_pylist())
        return [row for row in rows if row["key"] not in done]

    def partial(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
        pool = labels_pool(Storage(recipe.workspace), recipe)
        since, _ = pool.generations(output, forced=False)
        rows = _wanted(inputs, recipe)
        left = len(missing(rows, pool, since))
        return f"{len(rows) - left:,} of {len(rows):,} videos are done" if left < len(rows) else None

    def run(context: StageContext) -> Counts:
        from pipelines.labels import LabelSettings, LabelShard

        pool = labels_pool(context.workspace, recipe)
        since, generation = pool.generations(context.output, forced=context.forced)
        rows = _wanted(context.inputs, recipe)
        left = pa.Table.from_pylist(missing(rows, pool, since))
        work = Work()
        with Progress("labels", total=len(rows), unit="videos", done=len(rows) - len(left)) as progress:
            for summary in map_shards(
                split_shards(left, labels.videos_per_shard),
                LabelShard,
                constructor={
                    "settings": LabelSettings(recipe.model, labels, recipe.seed),
                    "frames_pool": frames_pool(context.workspace, recipe).storage,
                    "pool": pool,
                    "generation": generation,
                },
                name="labels",
                resources=recipe.resources.labels,
            ):
                work.add(summary)
                progress.advance(summary["rows"], f"{summary['units'] / max(summary['rows'], 1):.1f} pairs each")
        splits = {row["key"]: row["split"] for row in rows}
        found = newest_rows(pool.index(["video_id", "caption_index"], since=since))
        found = found.filter(pc.is_in(found.column("key"), pa.array(list(splits))))
        found = found.append_column("split", pa.array([splits[key] for key in found.column("key").to_pylist()]))
        context.output.write_table(
            INDEX_FILE, found.sort_by([("video_id", "ascending"), ("caption_index", "ascending")])
        )
        train = pc.sum(pc.equal(found.column("split"), "train")).as_py() or 0
        return {
            "rows": len(found),
            "errors": 0,
            "videos": len(rows),
            "train_pairs": train,
            **work.counts("pairs"),
        }

    return Stage(
        name="labels",
        version=1,
        settings=_labels_settings(recipe),
        inputs=("manifest", "frames"),
        run=run,
        partial=partial,
        lost=lambda artifact: labels_pool(Storage(recipe.workspace), recipe).lost_words(artifact.storage),
        writes=_pool_name(recipe),
    )


def label_key(frames_key: str, texts: Sequence[str]) -> str:
    """Content identity of the labels of a video: its frames and its texts."""
    return digest([frames_key, list(texts)])


def _wanted(inputs: Mapping[str, Artifact], recipe: Recipe) -> list[dict[str, Any]]:
    """Videos of the training and validation splits with frames and texts, by id."""
    texts = _texts(inputs["manifest"].storage, from_captions=recipe.data.has_captions)
    index = inputs["frames"].storage.read_table(INDEX_FILE)
    wanted = index.filter(pc.is_in(index.column("split"), pa.array(["train", "val"]))).sort_by("video_id")
    rows = [{**row, "texts": texts[row["video_id"]][: recipe.labels.captions_per_video]} for row in wanted.to_pylist()]
    return [{**row, "key": label_key(row["key"], row["texts"])} for row in rows if row["texts"]]


def _texts(manifest: Storage, *, from_captions: bool) -> dict[str, list[str]]:
    """The texts of each video that play the game: captions, or the questions that are not tested with."""
    table = manifest.read_table(MANIFEST_FILE, columns=["video_id", "captions", "questions"])
    return {
        row["video_id"]: row["captions"]
        if from_captions
        else [item["question"] for item in row["questions"] if item["split"] != "test"]
        for row in table.to_pylist()
    }
