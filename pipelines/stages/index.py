"""The stages of an index: what the collection holds, its frames, and the features to search in.

    collection ─► manifest ─► frames ─► index

The first two are those of every pipeline, so an index that is made again decodes only new videos, and
those that cannot be used become rows of the errors table. Features lie in a pool named by the model
alone. An index brings its model along: searching needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.configs import require
from pipelines.models.folder import FRAMES_JSON, MODEL
from pipelines.progress import Progress
from pipelines.recipe.indexing import IndexingConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.sharded_work import Work, map_shards
from pipelines.search.index_folder import CURRENT, VECTORS, features_pool
from pipelines.search.search_model import SearchModel
from pipelines.stages.frames import frames_pool, frames_settings
from pipelines.stages.stage import Graph, Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest, plain
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool, newest_rows, split_shards
from pipelines.workspace.storage import Storage


def index_stage(recipe: Recipe, model: SearchModel) -> Stage:
    """Encodes every video with frames that is not in the pool yet, and builds the first pass over all."""
    pool_name = f"features-{digest({'model': model.digest, 'frames': frames_settings(recipe)})}"

    def missing(inputs: Mapping[str, Artifact], pool: ShardPool, since: int) -> pa.Table:
        rows = _wanted(inputs)
        return rows.filter(pc.invert(pc.is_in(rows.column("key"), pool.index(since=since).column("key"))))

    def partial(inputs: Mapping[str, Artifact], output: Storage) -> str | None:
        pool = features_pool(Storage(recipe.workspace), pool_name)
        since, _ = pool.generations(output, forced=False)
        total, left = int(inputs["frames"].counts["rows"]), len(missing(inputs, pool, since))
        return f"{total - left:,} of {total:,} videos are done" if left < total else None

    def run(context: StageContext) -> Counts:
        pool = features_pool(context.workspace, pool_name)
        since, generation = pool.generations(context.output, forced=context.forced)
        _copy_model(model, context.output)
        left = missing(context.inputs, pool, since)
        work = _encode(context, recipe, left, pool, generation)
        found = newest_rows(pool.index(["video_id", "coarse"], since=since))
        rows = _wanted(context.inputs)
        _commit(context.output, found, rows)
        return {"rows": len(rows), "errors": 0, "new": len(left), **work.counts("frames")}

    return Stage(
        name="index",
        version=1,
        settings={"model": model.digest, "frames": frames_settings(recipe)},
        inputs=("manifest", "frames"),
        run=run,
        partial=partial,
        lost=lambda artifact: features_pool(Storage(recipe.workspace), pool_name).lost_words(artifact.storage),
        writes=pool_name,
    )


def _wanted(inputs: Mapping[str, Artifact]) -> pa.Table:
    """The videos that have frames: where these lie, and what the manifest says."""
    frames = inputs["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "shard", "row"])
    manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["key", "uri", "start_s", "end_s"])
    # Neighbours in a shard of frames are encoded together, so that few shards are opened.
    return frames.join(manifest, "key", join_type="inner").sort_by([("shard", "ascending"), ("row", "ascending")])


def _copy_model(model: SearchModel, output: Storage) -> None:
    from pipelines.models.initial_weights import load_checkpoint
    from pipelines.models.weights import save_model

    with TemporaryDirectory() as scratch, TemporaryDirectory() as saved:
        loaded = load_checkpoint(model.checkpoint, model.config, Path(scratch))
        save_model(Path(saved), loaded, kind="retrieval", config=loaded.config)
        (Path(saved) / FRAMES_JSON).write_text(json.dumps(plain(model.frames), indent=2) + "\n")
        output.upload(Path(saved), MODEL)


def _encode(context: StageContext, recipe: Recipe, left: pa.Table, pool: ShardPool, generation: int) -> Work:
    from pipelines.search.features import EncodeShard

    config: IndexingConfig = recipe.indexing
    work, total = Work(), int(context.inputs["frames"].counts["rows"])
    with Progress("index", total=total, unit="videos", done=total - len(left)) as progress:
        for row in map_shards(
            split_shards(left, config.videos_per_shard),
            EncodeShard,
            constructor={
                "model": context.output.folder(MODEL),
                "frames_pool": frames_pool(context.workspace, recipe),
                "pool": pool,
                "generation": generation,
                "batch_size": config.batch_size,
            },
            name="index",
            resources=recipe.resources.index,
        ):
            work.add(row)
            progress.advance(row["rows"])
    return work


def _commit(output: Storage, found: pa.Table, rows: pa.Table) -> None:
    """Writes the first pass and, in its order, where every video lies."""
    import numpy as np

    from pipelines.search.first_pass import FirstPass

    found = found.filter(pc.is_in(found.column("key"), rows.column("key"))).sort_by("video_id")
    require(len(found) > 0, "no video of the collection could be used; the errors table of the stage frames says why")
    vectors = found.column("coarse").combine_chunks()
    matrix = np.reshape(vectors.flatten().to_numpy(), (len(found), -1))
    output.write_bytes(VECTORS, FirstPass.build(matrix).to_bytes())
    places = pc.index_in(found.column("key"), rows.column("key"))
    index = found.drop_columns(["coarse"])
    rows = rows.rename_columns({"shard": "frames_shard", "row": "frames_row"})
    for name in ("uri", "start_s", "end_s", "frames_shard", "frames_row"):
        index = index.append_column(name, rows.column(name).take(places))
    output.write_table(INDEX_FILE, index)


def publish(graph: Graph) -> None:
    """Makes searches use the index that ``graph`` has made; running ones keep what they have.

    The document names the artifact, and the pools of features and of frames.
    """
    stages = {stage.name: stage for stage in graph.stages}
    graph.workspace.write_json(
        CURRENT,
        {
            "artifact": f"index/{graph.fingerprints['index']}",
            "features": stages["index"].writes,
            "frames": stages["frames"].writes,
        },
    )
