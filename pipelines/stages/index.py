"""The stages of an index: what the collection holds, its frames, and the features to search in.

    collection ─► manifest ─► frames ─► index

The first two are those of every pipeline, so an index that is made again decodes only new videos, and unusable videos
become rows of the errors table. Features lie in a pool that is named only by the model and the way of decoding. An
index contains a copy of its model, so searching needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.config_fields import require
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.models.folder import FRAMES_JSON, MODEL, ZERO_SHOT
from pipelines.recipe.indexing import IndexingConfig
from pipelines.recipe.recipe import Recipe
from pipelines.search.index_folder import CURRENT, VECTORS, features_pool
from pipelines.search.search_model import SearchModel
from pipelines.stages.bank import BANK
from pipelines.stages.frames import frames_identity, frames_pool, frames_settings
from pipelines.stages.plan import Graph
from pipelines.stages.pooled import PooledStage, ShardJob, with_version
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest, plain
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage


def index_stage(recipe: Recipe, model: SearchModel) -> Stage:
    """Encodes every video with frames that is not in the pool yet, and builds the first pass over all."""
    return IndexStage(recipe, model).stage()


@dataclass(frozen=True)
class IndexStage(PooledStage):
    """Needs the manifest and the frames; writes the first pass, where all features lie, and the model."""

    model: SearchModel

    name = "index"
    version = 1
    inputs = ("manifest", "frames")
    unit = "frames"
    columns = ("video_id", "coarse")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"model": self.model.digest, "frames": frames_settings(self.recipe)}

    def pool(self, workspace: Storage) -> ShardPool:
        # The fingerprint has the version of the frames through its inputs; the name of the pool has to hold it itself.
        identity = with_version({"model": self.model.digest, "frames": frames_identity(self.recipe)}, self.version)
        return features_pool(workspace, f"features-{digest(identity)}")

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        return videos_with_frames(inputs)

    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        from pipelines.search.features import EncodeShard

        config: IndexingConfig = self.recipe.indexing
        return ShardJob(
            work=EncodeShard,
            resources=self.recipe.resources.index,
            videos_per_shard=config.videos_per_shard,
            constructor={
                "model": context.output.folder(MODEL),
                "frames_pool": frames_pool(context.workspace, self.recipe),
                "pool": pool,
                "generation": generation,
                "batch_size": config.batch_size,
            },
        )

    def run(self, context: StageContext) -> Counts:
        # First, because the actors load the model from this copy.
        _copy_model(self.model, context.output)
        counts = super().run(context)
        return {**counts, "new": counts["work/rows"]}

    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        commit_index(context.output, found, wanted)
        return {"rows": len(wanted), "errors": 0}


def videos_with_frames(inputs: Mapping[str, Artifact]) -> pa.Table:
    """The videos that have frames: where these lie, and what the manifest says."""
    frames = inputs["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "shard", "row"])
    manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["key", "uri", "start_s", "end_s"])
    # Sorted by shard, so that neighbours in a shard are encoded together and few shards are opened.
    return frames.join(manifest, "key", join_type="inner").sort_by([("shard", "ascending"), ("row", "ascending")])


def _copy_model(model: SearchModel, output: Storage) -> None:
    from hbi_models.zero_shot import ZeroShotModel
    from pipelines.models.initial_weights import load_checkpoint
    from pipelines.models.weights import save_model

    with TemporaryDirectory() as scratch, TemporaryDirectory() as saved:
        if isinstance(model.config, ZeroShotConfig):
            encoder = ZeroShotModel(model.config)
            save_model(Path(saved), encoder, kind=ZERO_SHOT, config=encoder.config)
        else:
            loaded = load_checkpoint(str(model.checkpoint), model.config, Path(scratch))
            save_model(Path(saved), loaded, kind="retrieval", config=loaded.config)
        (Path(saved) / FRAMES_JSON).write_text(json.dumps(plain(model.frames), indent=2) + "\n")
        output.upload(Path(saved), MODEL)


def commit_index(output: Storage, found: pa.Table, rows: pa.Table) -> None:
    """Writes the first pass and, in its order, where every video lies."""
    import numpy as np

    from pipelines.search.first_pass import FirstPass

    found = found.sort_by("video_id")
    require(len(found) > 0, "no video of the collection could be used; the errors table of the stage frames says why")
    vectors = found.column("coarse").combine_chunks()
    matrix = np.reshape(vectors.flatten().to_numpy(), (len(found), -1))  # (videos, channels)
    output.write_bytes(VECTORS, FirstPass.build(matrix).to_bytes())
    places = pc.index_in(found.column("key"), rows.column("key"))
    index = found.drop_columns(["coarse"])
    rows = rows.rename_columns({"shard": "frames_shard", "row": "frames_row"})
    for name in ("uri", "start_s", "end_s", "frames_shard", "frames_row"):
        index = index.append_column(name, rows.column(name).take(places))
    output.write_table(INDEX_FILE, index)


def publish(graph: Graph) -> None:
    """Makes searches use the index that ``graph`` has made; running searches keep the old one.

    The document names the artifact, the pools of features and of frames, and the bank, if there is one.
    """
    stages = {stage.name: stage for stage in graph.stages}
    bank = {"bank": f"{BANK}/{graph.fingerprints[BANK]}"} if BANK in stages else {}
    graph.workspace.write_json(
        CURRENT,
        {
            "artifact": f"index/{graph.fingerprints['index']}",
            "features": stages["index"].writes,
            "frames": stages["frames"].writes,
            **bank,
        },
    )
