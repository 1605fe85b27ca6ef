"""Training with two DDP workers of one thread each against one worker with the whole batch and both threads.

Both run the training loop of the stage ``retrieval`` on the demo's model and batch size, in processes of their own
over gloo, without Ray around them: loading, step and the gathering of features and gradients are what it does there.
Start, validation and saving are not part of the figure.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from PIL import Image

from benchmarks.rows import ResultsDifferError, Row, Spread, Target, ratios
from jobs.settings import read_recipe, recipe_parser
from pipelines.recipe.data import Split
from pipelines.train.loop import LoopSettings, TrainingLoop
from pipelines.train.pair_task import TrainingData
from pipelines.train.retrieval import RetrievalTask
from pipelines.workspace.records import FRAMES, INDEX_FILE, MANIFEST, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

WORKERS, STEPS, WARM_UP, TIMES = 2, 10, 3, 3
RECIPE = Path(__file__).parents[1] / "jobs/recipes/demo.yaml"
TOLERANCE = 1e-3
"""Of a loss, relative: sums are taken in another order, and weights part with every step."""

Points = list[dict[str, float]]


class Recorder:
    """Keeps the points of every step."""

    def __init__(self) -> None:
        self.points: Points = []

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.points.append(dict(metrics))

    def checkpoint(self, folder: Path | None, score: float) -> None:
        """The benchmark goes on from none."""


def rows(folder: Path) -> Iterator[Row]:
    write_data(folder, make_task(folder).training.batch_size)
    one: list[float] = []
    several: list[float] = []
    for turn in range(TIMES):
        alone = train(folder / f"alone{turn}", folder, workers=1, threads=WORKERS)
        together = train(folder / f"together{turn}", folder, workers=WORKERS, threads=1)
        require_equal(alone, together)
        one.append(pairs_per_second(alone))
        several.append(pairs_per_second(together))
    theirs, ours = Spread(tuple(one)), Spread(tuple(several))
    yield Row(
        f"training, {WORKERS} DDP workers with a thread each",
        f"one worker, the whole batch, {WORKERS} threads",
        theirs,
        ours,
        "pairs/s",
        ratios(ours, theirs),
        Target("≥", 0.9),
    )


def train(scratch: Path, data: Path, *, workers: int, threads: int) -> Points:
    """Trains in ``workers`` processes; the points of every step, which are the same on all ranks."""
    scratch.mkdir()
    multiprocessing.spawn(_train, (scratch, data, workers, threads), nprocs=workers)
    points: Points = json.loads((scratch / "points.json").read_text())
    return points


def _train(rank: int, scratch: Path, data: Path, workers: int, threads: int) -> None:
    # Otherwise gloo looks for an interface by the host's name, which need not resolve.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(threads)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{scratch}/meeting", rank=rank, world_size=workers)
    recorder = Recorder()
    settings = LoopSettings(log_every_steps=1)
    TrainingLoop(make_task(data), device=torch.device("cpu"), reporter=recorder, settings=settings).run()
    if rank == 0:
        (scratch / "points.json").write_text(json.dumps(recorder.points))
    if workers > 1:
        dist.destroy_process_group()


def make_task(data: Path) -> RetrievalTask:
    recipe = read_recipe(recipe_parser("A benchmark."), ["--config", str(RECIPE)])[0]
    storage = Storage(str(data))
    return RetrievalTask(
        # The exact teacher needs no trained estimator.
        model_config=replace(recipe.model, game=replace(recipe.model.game, teacher="exact")),
        training=replace(recipe.retrieval, epochs=1),
        seed=recipe.seed,
        data=TrainingData(
            manifest=storage.folder("manifest"), frames=storage.folder("frames"), frames_pool=storage.folder("pool")
        ),
        loader_processes=0,
        steps_per_epoch=[STEPS],
    )


def write_data(folder: Path, batch_size: int) -> None:
    """Commits a manifest and random frames of the demo's size for ``STEPS`` batches of videos with one caption."""
    generator = np.random.default_rng(0)
    recipe = read_recipe(recipe_parser("A benchmark."), ["--config", str(RECIPE)])[0]
    side = recipe.frames.short_side_px
    images = [_jpeg(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(64)]
    storage = Storage(str(folder))
    pool = ShardPool(storage.folder("pool"), FRAMES)
    splits: Sequence[tuple[Split, int]] = (("train", STEPS * batch_size), ("val", 8))
    manifest: list[dict[str, Any]] = []
    for split, videos in splits:
        stored = []
        for number in range(videos):
            name = f"{split}{number:05}"
            caption = f"a red circle moves left and then a blue square grows number {number}"
            manifest.append(
                {"video_id": name, "uri": name, "key": name, "split": split, "captions": [caption], "questions": []}
            )
            # None twice: which of two equal frames is the centre of a cluster, rounding would decide.
            chosen = generator.choice(len(images), recipe.frames.max_frames, replace=False).tolist()
            frames = [images[position] for position in chosen]
            stored.append({"video_id": name, "key": name, "frames": frames, "frame_index": [], "time_s": []})
        pool.commit(stored)
    storage.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    storage.write_table(f"frames/{INDEX_FILE}", pool.index(["video_id"]))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def require_equal(alone: Points, together: Points) -> None:
    """Compares the loss of every step.

    Raises:
        ResultsDifferError: several workers train another model than one.
    """
    losses = [[point["train/loss"] for point in points] for points in (alone, together)]
    if not all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(*losses, strict=True)):
        raise ResultsDifferError(f"the losses of one worker and of several differ: {losses}")


def pairs_per_second(points: Points) -> float:
    """Of all steps after the warm-up; a step's seconds are its pairs, the same number each, by its throughput."""
    rates = [point["throughput/pairs_per_s"] for point in points[WARM_UP:]]
    return len(rates) / sum(1 / rate for rate in rates)
