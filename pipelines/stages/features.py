"""The stage ``features``: words and frames are encoded once, where the encoder is frozen.

Stages that start from the same encoder read its features; those that start from another checkpoint read frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.models.clip_weights import handed_out, weights_folders
from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_identity, frames_pool
from pipelines.stages.pooled import PooledStage, ShardJob, with_version
from pipelines.stages.settings import checkpoint_digest, counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, digest
from pipelines.workspace.records import ERRORS, ERRORS_FILE, INDEX_FILE, MANIFEST_FILE, tokens_schema
from pipelines.workspace.shards import SHARDS, ShardPool, shard_size
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    from pipelines.models.features import EncoderSettings
    from pipelines.splits import MakeStore

VERSION = 1
"""A constant for the same reason as the version of the frames."""

FEATURES = "features"

_PLACE = pa.struct([("uri", pa.string()), ("group", pa.int64()), ("row", pa.int64())])
"""The place of a row in a file of the user."""


def features_stage(recipe: Recipe) -> Stage:
    """Adds the features of all videos with frames, and of their texts, that the pool lacks: encoded here, or given."""
    return (FeaturesStage if recipe.model.tokens is None else GivenFeaturesStage)(recipe).stage()


def videos_from(recipe: Recipe, checkpoint: str | None) -> str:
    """The stage whose rows a model reads if it starts from ``checkpoint`` (None = CLIP): ``features`` or ``frames``."""
    same = recipe.model.tokens is not None or checkpoint == encoder_checkpoint(recipe)
    return FEATURES if recipe.stores_features and same else "frames"


def encoder_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint whose encoder is frozen: the first training's; None = CLIP's own weights."""
    first = recipe.retrieval if "retrieval" in recipe.tasks else recipe.video_qa
    return first.init_checkpoint


def answering_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint that the encoder of question answering comes from; None = CLIP's own weights."""
    return recipe.retrieval.init_checkpoint if recipe.video_qa.from_retrieval else recipe.video_qa.init_checkpoint


def stored_videos(recipe: Recipe, context: StageContext) -> dict[str, Any]:
    """Where the inputs of a stage hold its videos: arguments ``frames``, ``pool`` and ``store`` of a view."""
    source = FEATURES if FEATURES in context.inputs else "frames"
    pool, store = rows_of(source, context.workspace, recipe)
    return {"frames": context.inputs[source].storage, "pool": pool, "store": store}


def rows_of(source: str, workspace: Storage, recipe: Recipe) -> tuple[Storage, MakeStore]:
    """The folder of the shards of ``features`` or ``frames``, and what reads them."""
    from pipelines.video.frame_store import FrameStore
    from pipelines.video.token_store import TokenStore

    if source != FEATURES:
        return frames_pool(workspace, recipe).storage, FrameStore
    config = recipe.features
    store = partial(TokenStore, dtype=config.dtype, max_memory_gb=config.max_memory_gb)
    return _storage(workspace, recipe), store


def features_settings(recipe: Recipe) -> Mapping[str, Any]:
    """What stored features depend on, besides the frames and texts of a video."""
    if recipe.model.tokens is not None:
        # Longer items are refused, so the lengths that the model takes change nothing.
        return {"dtype": recipe.features.dtype, "tokens": counting(recipe.model.tokens)}
    views = recipe.features.views > 0
    return {
        **counting(recipe.features),
        "encoder": _encoder_identity(recipe),
        "max_words": _max_words(recipe),
        "augmentation": counting(recipe.view_augmentation) if views else None,
        # With pretrained weights and without views nothing is drawn.
        "seed": recipe.seed if views or _is_drawn(recipe) else None,
    }


def features_identity(recipe: Recipe) -> Mapping[str, Any]:
    """The same with the frames, and the versions of the code that made both."""
    if recipe.model.tokens is not None:
        return with_version({"features": features_settings(recipe)}, VERSION)
    return with_version({"features": features_settings(recipe), "frames": frames_identity(recipe)}, VERSION)


def encoder_settings(recipe: Recipe, clip_weights: Storage | None = None) -> EncoderSettings:
    """What the work of the stage needs to know; see :mod:`pipelines.models.clip_weights` for the weights."""
    from pipelines.models.features import EncoderSettings

    return EncoderSettings(
        model=recipe.model,
        # The number of answers has no part in an encoder.
        answering=recipe.video_qa_model(2),
        checkpoint=encoder_checkpoint(recipe),
        features=recipe.features,
        augmentation=recipe.view_augmentation,
        seed=recipe.seed,
        clip_weights=clip_weights,
    )


def _encoder_identity(recipe: Recipe) -> Mapping[str, Any]:
    clip, checkpoint = counting(recipe.model.clip, "features"), encoder_checkpoint(recipe)
    # The checkpoint's weights take the place of CLIP's own, so those do not count.
    return clip if checkpoint is None else {**clip, "pretrained": checkpoint_digest(checkpoint)}


def _is_drawn(recipe: Recipe) -> bool:
    """Whether the encoder's weights are those that the seed gives."""
    return encoder_checkpoint(recipe) is None and recipe.model.clip.pretrained is None


def _max_words(recipe: Recipe) -> Mapping[str, list[int]]:
    """The lengths, in tokens, to which texts of each kind are cut; a text is encoded once for each length."""
    plays = recipe.has_estimator and recipe.estimator.epochs > 0
    captions = "retrieval" in recipe.tasks or (plays and recipe.data.has_captions)
    cuts = {recipe.video_qa.max_words} if "video_qa" in recipe.tasks else set()
    if plays and not recipe.data.has_captions:
        cuts.add(recipe.model.max_words)
    return {"captions": [recipe.model.max_words] if captions else [], "questions": sorted(cuts)}


def _storage(workspace: Storage, recipe: Recipe) -> Storage:
    # The pools of indexes are called features.
    return workspace.folder(SHARDS, f"tokens-{digest(features_identity(recipe))}")


class FeaturesStage(PooledStage):
    """Needs the manifest and the frames; writes where the features of each video and of its texts lie."""

    name = FEATURES
    version = VERSION
    inputs: ClassVar[tuple[str, ...]] = ("manifest", "frames")
    unit = "frames"
    columns = ("video_id", "num_frames", "views", "bytes")

    @property
    def keeps(self) -> tuple[str, ...]:
        recipe = self.recipe
        starts_from_clip = recipe.model.tokens is None and encoder_checkpoint(recipe) is None
        return weights_folders(recipe.model.clip) if starts_from_clip else ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return features_settings(self.recipe)

    def pool(self, workspace: Storage) -> ShardPool:
        return ShardPool(_storage(workspace, self.recipe), tokens_schema(self.recipe.features.dtype))

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        return wanted_features(inputs, self.recipe)

    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        work, arguments = self.work(context)
        return ShardJob(
            work=work,
            resources=self.recipe.resources.features,
            videos_per_shard=shard_size(total, self.recipe.features.videos_per_shard),
            constructor={**arguments, "pool": pool, "generation": generation},
        )

    def work(self, context: StageContext) -> tuple[type, dict[str, Any]]:
        """What makes a shard, and its arguments beside those of every shard."""
        from pipelines.models.features import EncodeFeatures

        return EncodeFeatures, {
            "settings": encoder_settings(self.recipe, handed_out(context.workspace, self.recipe.model.clip)),
            "frames_pool": frames_pool(context.workspace, self.recipe).storage,
        }

    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        splits = wanted.column("split").take(pc.index_in(found.column("key"), wanted.column("key")))
        context.output.write_table(INDEX_FILE, found.append_column("split", splits).sort_by("video_id"))
        # Views of a split look for all its videos here, also for those without frames.
        failed = context.inputs["frames"].storage.read_table(ERRORS_FILE) if "frames" in context.inputs else None
        context.output.write_table(ERRORS_FILE, ERRORS.empty_table() if failed is None else failed)
        return {"rows": len(found), "errors": 0, "bytes": pc.sum(found.column("bytes")).as_py() or 0}


def wanted_features(inputs: Mapping[str, Artifact], recipe: Recipe) -> pa.Table:
    """Videos with frames, where the frames lie, the texts, and how many augmented copies are wanted."""
    frames = inputs["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "split", "shard", "row"])
    # Neighbours in a shard of frames are encoded together, so that few shards are opened.
    frames = frames.rename_columns({"key": "frames_key"}).sort_by([("shard", "ascending"), ("row", "ascending")])
    manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["video_id", "captions", "questions"])
    known = {row["video_id"]: row for row in manifest.to_pylist()}
    rows = [_wanted(row, known[row["video_id"]], recipe) for row in frames.to_pylist()]
    schema = [*frames.schema, ("key", pa.string()), ("texts", pa.list_(pa.string()))]
    schema += [("max_words", pa.list_(pa.int32())), ("views", pa.int32())]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def _wanted(place: Mapping[str, Any], row: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A video of the manifest whose frames lie in a ``place``, with its texts, and how many copies of it are wanted."""
    said = {"captions": row["captions"], "questions": [item["question"] for item in row["questions"]]}
    cuts = ((kind, cut) for kind, lengths in _max_words(recipe).items() for cut in lengths)
    # Each once, and in a fixed order, which is a part of the key.
    texts = list(dict.fromkeys((text, cut) for kind, cut in cuts for text in said[kind]))
    # Augmented copies are for trainings alone. A video of another split may have training questions.
    trained = place["split"] == "train" or any(item["split"] == "train" for item in row["questions"])
    views = recipe.features.views if trained else 0
    return {
        **place,
        # With another caption the video is another row, and is encoded again.
        "key": digest([place["frames_key"], texts, views]),
        "texts": [text for text, _ in texts],
        "max_words": [cut for _, cut in texts],
        "views": views,
    }


class GivenFeaturesStage(FeaturesStage):
    """The same with features that another model made: needs the manifest, which was read from their files."""

    inputs = ("manifest",)

    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        from pipelines.datasets.features_file import read_given_videos

        columns = ["video_id", "key", "split", "captions"]
        manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=columns)
        given = read_given_videos(str(self.recipe.data.features))
        rows = []
        for row in manifest.to_pylist():
            video, captions = given[row["video_id"]], row.pop("captions")
            words = [asdict(video.captions[text]) for text in captions]
            key = digest([row["key"], captions])
            frames = video.frames and asdict(video.frames)
            rows.append({**row, "key": key, "texts": captions, "frames": frames, "words": words})
        schema = [("video_id", pa.string()), ("key", pa.string()), ("split", pa.string())]
        schema += [("texts", pa.list_(pa.string())), ("frames", _PLACE), ("words", pa.list_(_PLACE))]
        return pa.Table.from_pylist(rows, schema=pa.schema(schema))

    def work(self, context: StageContext) -> tuple[type, dict[str, Any]]:
        from pipelines.models.given_features import StoreGivenFeatures

        recipe = self.recipe
        return StoreGivenFeatures, {
            "model": recipe.model,
            "tokens": recipe.model.tokens,
            "dtype": recipe.features.dtype,
        }
