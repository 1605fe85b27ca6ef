"""The stage ``labels``: interaction labels of the training and validation pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.models.clip_weights import handed_out, weights_folders
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import FEATURES, features_identity, rows_of, videos_from
from pipelines.stages.frames import frames_identity
from pipelines.stages.pooled import PooledStage, ShardJob, with_version
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest
from pipelines.workspace.records import INDEX_FILE, LABELS, MANIFEST_FILE
from pipelines.workspace.shards import SHARDS, ShardPool
from pipelines.workspace.storage import Storage

VERSION = 1
"""A constant for the same reason as the version of the frames."""


def labels_stage(recipe: Recipe) -> Stage:
    """Labels every (text, video) pair of the training and validation splits."""
    return LabelsStage(recipe).stage()


def labels_pool(workspace: Storage, recipe: Recipe) -> ShardPool:
    """Where label shards lie: one pool per kind of label, model and way of decoding."""
    of_features = _source(recipe) == FEATURES
    videos = {FEATURES: features_identity(recipe)} if of_features else {"frames": frames_identity(recipe)}
    identity = with_version({"labels": _labels_settings(recipe), **videos}, VERSION)
    # Labels are read shard by shard, never row by row.
    return ShardPool(workspace.folder(SHARDS, f"labels-{digest(identity)}"), LABELS, read_by_row=False)


def _labels_settings(recipe: Recipe) -> Mapping[str, Any]:
    # Labels are made of single words and frames: settings of merging, losses and trainings do not count.
    return {**counting(recipe.labels), "model": counting(recipe.model, "features"), "seed": recipe.seed}


def _source(recipe: Recipe) -> str:
    """The stage whose rows labels are made of."""
    return videos_from(recipe, recipe.labels.checkpoint)


class LabelsStage(PooledStage):
    """Needs the manifest and the frames, or features of them; writes where the labels of each pair lie."""

    name = "labels"
    version = VERSION
    inputs = ("manifest", "frames")
    unit = "pairs"
    columns = ("video_id", "caption_index")

    def stage(self) -> Stage:
        # What is read depends on the recipe, and the ``inputs`` above belong to the class.
        return replace(super().stage(), inputs=("manifest", _source(self.recipe)))

    @property
    def keeps(self) -> tuple[str, ...]:
        return weights_folders(self.recipe.model.clip) if self.recipe.labels.checkpoint is None else ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return _labels_settings(self.recipe)

    def pool(self, workspace: Storage) -> ShardPool:
        return labels_pool(workspace, self.recipe)

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        return wanted_videos(inputs, self.recipe)

    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        from pipelines.labels import LabelSettings, LabelShard

        recipe = self.recipe
        shards, store = rows_of(_source(recipe), context.workspace, recipe)
        return ShardJob(
            work=LabelShard,
            resources=recipe.resources.labels,
            videos_per_shard=recipe.labels.videos_per_shard,
            constructor={
                "settings": LabelSettings(
                    recipe.model, recipe.labels, recipe.seed, handed_out(context.workspace, recipe.model.clip)
                ),
                "frames_pool": shards,
                "store": store,
                "pool": pool,
                "generation": generation,
            },
        )

    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        splits = wanted.column("split").take(pc.index_in(found.column("key"), wanted.column("key")))
        found = found.append_column("split", splits)
        context.output.write_table(
            INDEX_FILE, found.sort_by([("video_id", "ascending"), ("caption_index", "ascending")])
        )
        train = pc.sum(pc.equal(splits, "train")).as_py() or 0
        return {"rows": len(found), "errors": 0, "videos": len(wanted), "train_pairs": train}


def label_key(frames_key: str, texts: Sequence[str]) -> str:
    """Content identity of the labels of a video: its frames and its texts."""
    return digest([frames_key, list(texts)])


def wanted_videos(inputs: Mapping[str, Artifact], recipe: Recipe) -> pa.Table:
    """Videos of the training and validation splits with frames and texts, by id, and where their frames lie."""
    texts = _texts(inputs["manifest"].storage, from_captions=recipe.data.has_captions)
    source = _source(recipe)
    columns = ["video_id", "key", "split", "shard", "row", *(["bytes"] if source == FEATURES else [])]
    index = inputs[source].storage.read_table(INDEX_FILE, columns=columns)
    # Test videos get no labels: the estimator learns from training pairs and is chosen by validation pairs.
    index = index.filter(pc.is_in(index.column("split"), pa.array(["train", "val"]))).sort_by("video_id")
    index = index.rename_columns({"key": "frames_key"})
    said = [texts[video_id][: recipe.labels.captions_per_video] for video_id in index.column("video_id").to_pylist()]
    keys = [label_key(key, mine) for key, mine in zip(index.column("frames_key").to_pylist(), said, strict=True)]
    index = index.append_column("texts", pa.array(said, pa.list_(pa.string())))
    index = index.append_column("key", pa.array(keys, pa.string()))
    return index.filter(pc.greater(pc.list_value_length(index.column("texts")), 0))


def _texts(manifest: Storage, *, from_captions: bool) -> dict[str, list[str]]:
    """The texts of each video that get labels: captions, or the questions for training and validation."""
    table = manifest.read_table(MANIFEST_FILE, columns=["video_id", "captions", "questions"])
    return {
        row["video_id"]: row["captions"]
        if from_captions
        else [item["question"] for item in row["questions"] if item["split"] != "test"]
        for row in table.to_pylist()
    }
