"""A retrieval model, a data set and a training task small enough to train in a test."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import GameConfig, MergingConfig, RetrievalConfig, TemporalConfig
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.models.features import EncodeFeatures
from pipelines.recipe.data import Split
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.stages.features import encoder_settings, wanted_features
from pipelines.train.pair_task import TrainingData
from pipelines.train.pairs import steps_of_epochs
from pipelines.train.retrieval import RetrievalTask
from pipelines.video.token_store import TokenStore
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import FRAMES, INDEX_FILE, MANIFEST, MANIFEST_FILE, tokens_schema
from pipelines.workspace.shards import ShardPool, split_shards
from pipelines.workspace.storage import Storage

IMAGE_PX = 32
MAX_WORDS = 16
MAX_FRAMES = 6

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": IMAGE_PX, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": MAX_WORDS, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

WORDS = ("a", "red", "blue", "circle", "square", "moves", "grows", "left", "right", "then", "and", "small")


def write_architecture(folder: Path) -> str:
    """Returns the path of a JSON file with the architecture."""
    # Atomic, because ranks that start at the same time all write it and read it.
    Storage(str(folder)).write_json("tiny-clip.json", ARCHITECTURE)
    return str(folder / "tiny-clip.json")


def retrieval_config(folder: Path, **settings: Any) -> RetrievalConfig:
    """Returns settings of the tiny model; keywords replace those of ``RetrievalConfig``."""
    defaults: dict[str, Any] = {
        "clip": ClipConfig(architecture=write_architecture(folder), pretrained=None, freeze_patch_embedding=False),
        "temporal": TemporalConfig(layers=1),
        "merging": MergingConfig(text_rates=(0.5, 0.5), video_rates=(0.5, 0.5), heads=4),
        "game": GameConfig(teacher="exact", estimator_channels=8),
        "max_words": MAX_WORDS,
        "max_frames": MAX_FRAMES,
    }
    return RetrievalConfig(**{**defaults, **settings})


def frozen_config(folder: Path) -> RetrievalConfig:
    """Returns settings of the tiny model with a frozen encoder."""
    config = retrieval_config(folder)
    return replace(config, clip=replace(config.clip, train="none"))


def write_split_data(folder: Path, captions: dict[Split, Sequence[int]]) -> Storage:
    """Commits a manifest, an index and frames of random videos with so many captions; all lengths differ."""
    random = np.random.default_rng(0)
    storage = Storage(str(folder))
    pool = ShardPool(storage.folder("pool"), FRAMES)
    manifest, frames = [], []
    for split, counts in captions.items():
        for number, count in enumerate(counts):
            name = f"{split}{number}"
            texts = [" ".join(random.choice(WORDS, random.integers(3, 11))) for _ in range(count)]
            images = [_jpeg(random) for _ in range(random.integers(1, MAX_FRAMES + 1))]
            manifest.append(
                {"video_id": name, "uri": name, "key": name, "split": split, "captions": texts, "questions": []}
            )
            frames.append(
                {
                    "video_id": name,
                    "key": name,
                    "frames": images,
                    "frame_index": list(range(len(images))),
                    "time_s": [float(place) for place in range(len(images))],
                    "source_fps": 1.0,
                    "source_frames": len(images),
                    "source_begin_s": 0.0,
                }
            )
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    for start in range(0, len(frames), 5):
        pool.commit(frames[start : start + 5])
    index = pool.index(["video_id"])
    splits = {row["video_id"]: row["split"] for row in manifest}
    index = index.append_column("split", pa.array([splits[name] for name in index.column("video_id").to_pylist()]))
    storage.write_table(f"frames/{INDEX_FILE}", index)
    return storage


def write_features(data: Storage, recipe: Recipe) -> Storage:
    """Encodes what ``write_split_data`` committed to ``data`` as the stage ``features`` of ``recipe`` does."""
    inputs = {name: Artifact(name, "", data.folder(name), {}) for name in ("manifest", "frames")}
    wanted = wanted_features(inputs, recipe)
    pool = ShardPool(data.folder("tokens"), tokens_schema(recipe.features.dtype))
    work = EncodeFeatures(encoder_settings(recipe), data.folder("pool"), pool)
    for part in split_shards(wanted, 4):
        work(part)
    data.write_table(f"features/{INDEX_FILE}", pool.index(["video_id", "bytes"]))
    return data


def feature_data(folder: Storage, recipe: Recipe) -> TrainingData:
    """Returns the places of what ``write_features`` made."""
    config = recipe.features
    return TrainingData(
        manifest=folder.folder("manifest"),
        frames=folder.folder("features"),
        frames_pool=folder.folder("tokens"),
        store=partial(TokenStore, dtype=config.dtype, max_memory_gb=config.max_memory_gb),
    )


def _jpeg(random: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random.integers(256, size=(IMAGE_PX, IMAGE_PX + 8, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def training_data(folder: Storage) -> TrainingData:
    """Returns the places of what ``write_split_data`` committed to ``folder``."""
    return TrainingData(
        manifest=folder.folder("manifest"), frames=folder.folder("frames"), frames_pool=folder.folder("pool")
    )


def retrieval_task(
    data: Storage, model: RetrievalConfig, captions: Sequence[int], *, seed: int = 3, **training: Any
) -> RetrievalTask:
    """Returns the training of ``model`` on the data that ``write_split_data`` made."""
    config = RetrievalTrainingConfig(
        **{
            "epochs": 2,
            "batch_size": 4,
            "augmentation": AugmentationConfig(operations=2),
            "optimizer": OptimizerConfig(lr=1e-3, clip_lr_factor=1.0),
            **training,
        }
    )
    return RetrievalTask(
        model_config=model,
        training=config,
        seed=seed,
        data=training_data(data),
        loader_processes=0,
        steps_per_epoch=steps_of_epochs(
            captions, batch_size=config.batch_size, seed=seed, epochs=config.epochs, max_texts=None
        ),
    )
