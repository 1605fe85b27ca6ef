"""A small model, a few clips, and an index over them, made as a user makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hbi_models.retrieval import RetrievalModel
from jobs.index import main as index_main
from pipelines.models.folder import FRAMES_JSON
from pipelines.models.weights import save_model
from pipelines.recipe.data import ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.shapes.data_set import VIDEOS_FOLDER, write_clips
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.mlflow_database import copy_database
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES, retrieval_config

OPTIONS = ["--frames.videos_per_shard", "4", "--indexing.videos_per_shard", "5", "--indexing.batch_size", "3"]
OPTIONS += ["--frames.max_error_fraction", "0.9"]
IN_PLACE = ["--resources.index.max_actors", "0", "--resources.decode.max_tasks", "0"]


def write_model(folder: Path, **settings: Any) -> Path:
    """Returns the folder of a retrieval model with random weights."""
    torch.manual_seed(0)
    config = retrieval_config(folder, level_rates=(1.0, 0.5, 0.25), **settings)
    model = folder / "model"
    model.mkdir()
    save_model(model, RetrievalModel(config), kind="retrieval", config=config)
    frames = FramesConfig(fps=4, max_frames=MAX_FRAMES, short_side_px=IMAGE_PX)
    Storage(str(model)).write_json(FRAMES_JSON, plain(frames))
    return model


def write_videos(folder: Path, count: int) -> Path:
    """Writes clips of about two seconds; returns their folder, which holds nothing else."""
    config = ShapesConfig(train_videos=count, test_videos=1, image_size_px=32, duration_s=2.0)
    write_clips(config, range(count), Storage(str(folder)))
    return folder / VIDEOS_FOLDER


def build_index(model: Path | str, videos: Path | str, index: Path | str, *options: str) -> int:
    """Runs ``jobs.index`` in this process; returns its exit code."""
    if "://" not in str(index):
        copy_database(Path(index))
    places = ["--checkpoint", str(model), "--videos", str(videos), "--index", str(index)]
    return index_main([*places, *OPTIONS, *IN_PLACE, *options])
