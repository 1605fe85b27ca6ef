"""Videos per second of the whole stage ``frames`` against bare decoding.

Ours is the stage as a run executes it: its lock, the manifest read, shards planned, every video opened in a
process that can be killed, frames sampled, decoded, resized, encoded as JPEG and committed, the index and the
artifact written. Ray runs before, and its workers have decoded before; so have the processes of the baseline. That
is a loop over decord in as many processes as there are cores, which decodes and resizes the same frames and
keeps nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.clips import generated_clips, link_videos, real_clips
from benchmarks.rows import ResultsDifferError, Row, Target, in_turns, per_second, ratios
from hbi_models.configs import RetrievalConfig
from pipelines.graph import make_graph
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ResourcesConfig
from pipelines.resources.ray_session import ray_session
from pipelines.stages.execution import execute_step
from pipelines.stages.frames import frames_pool
from pipelines.stages.plan import Graph
from pipelines.tracker import StageTracker
from pipelines.video.frame_store import FrameStore, decode_images
from pipelines.video.sampling import sample_frames
from pipelines.workspace.records import INDEX_FILE

TIMES, CHUNK = 3, 16
CORES = os.cpu_count() or 1


def rows(folder: Path) -> Iterator[Row]:
    small = generated_clips(folder / "small", ShapesConfig(train_videos=100, test_videos=1))
    real = real_clips(folder / "real", seconds=range(10, 31, 4))
    resources = ResourcesConfig(local_cpus=CORES)
    with ray_session(resources), ProcessPoolExecutor(CORES, get_context("spawn")) as processes:
        for what, files, count, frames in (
            ("1,000 clips of 64×64, 4 s", small, 1000, FramesConfig(fps=2, max_frames=8, short_side_px=64)),
            ("60 clips of 320×240, 10 to 30 s", real, 60, FramesConfig()),
        ):
            place = folder / str(count)
            captions, links = link_videos(place, files, count)
            data = DataConfig(
                dataset="captions_file",
                annotations=str(captions),
                videos=str(captions.parent / "videos"),
                validation_videos=0,
            )
            model = RetrievalConfig(max_frames=frames.max_frames)
            workspace = str(place / "workspace")
            recipe = Recipe(workspace=workspace, data=data, frames=frames, model=model, resources=resources)
            graph = make_graph(recipe)
            bare = partial(decode_all, processes, links, frames)
            run_stage(graph, recipe, "manifest")
            run_stage(graph, recipe, "frames")
            require_equal(recipe, graph, links, bare())
            theirs, ours = in_turns([bare, partial(run_stage, graph, recipe, "frames")], TIMES)
            yield Row(
                f"the stage frames, {what}",
                f"decord in {CORES} processes",
                per_second(count, theirs),
                per_second(count, ours),
                "videos/s",
                ratios(theirs, ours),
                Target("≥", 0.9),
            )


def run_stage(graph: Graph, recipe: Recipe, name: str) -> None:
    """Does the work of a stage, whether it is done or not."""
    for step in graph.plan(until_stage=name, force=[name]):
        execute_step(graph, step, tracker=StageTracker(), config=recipe)


def decode_all(processes: ProcessPoolExecutor, files: Sequence[Path], config: FramesConfig) -> list[list[int]]:
    """Decodes in all processes; the indices of every video's frames."""
    # Four chunks a core or more, so that no core waits long for the last one.
    chunk = max(1, min(CHUNK, len(files) // (4 * CORES)))
    chunks = [files[start : start + chunk] for start in range(0, len(files), chunk)]
    return list(chain.from_iterable(processes.map(partial(decode_chunk, config), chunks)))


def decode_chunk(config: FramesConfig, files: Sequence[Path]) -> list[list[int]]:
    return [decode(file, config)[0] for file in files]


def decode(file: Path, config: FramesConfig) -> tuple[list[int], list[Image.Image]]:
    """The sampled frames of a video as their authors would decode them; indices, and resized pictures."""
    from decord import VideoReader

    reader = VideoReader(str(file), num_threads=1)
    indices = sample_frames(
        fps=reader.get_avg_fps(), num_frames=len(reader), max_frames=config.max_frames, rate=config.fps
    )
    pictures = []
    for frame in reader.get_batch(indices).asnumpy():
        height, width, _ = frame.shape
        scale = config.short_side_px / min(height, width)
        size = (int(width * scale), int(height * scale))
        picture = Image.fromarray(frame)
        pictures.append(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))
    return indices, pictures


def require_equal(recipe: Recipe, graph: Graph, files: Sequence[Path], bare: Sequence[list[int]]) -> None:
    """Compares the number of every video's stored frames, and the pixels of the first videos.

    Raises:
        ResultsDifferError: they are not those that bare decoding gives.
    """
    artifact = graph.artifact("frames")
    assert artifact is not None
    index = artifact.storage.read_table(INDEX_FILE).sort_by("video_id")
    store = FrameStore(frames_pool(graph.workspace, recipe).storage, index)
    stored = [store.encoded(video) for video in range(len(store))]
    if [len(images) for images in stored] != [len(indices) for indices in bare]:
        raise ResultsDifferError(f"the stage stored {sum(map(len, stored))} frames, not {sum(map(len, bare))}")
    # Every tenth, because each is decoded and encoded again here.
    for video in range(0, len(files), 10):
        expected = decode_images([_jpeg(picture, recipe.frames) for picture in decode(files[video], recipe.frames)[1]])
        for found, wanted in zip(decode_images(stored[video]), expected, strict=True):
            if not np.array_equal(found.numpy(), wanted.numpy()):
                raise ResultsDifferError(f"a stored frame of {files[video]} is not what decord decodes")


def _jpeg(picture: Image.Image, config: FramesConfig) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=config.jpeg_quality)
    return buffer.getvalue()
