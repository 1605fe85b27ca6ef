"""One small data set and recipe for all clusters, and what one machine makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load

from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.models.weights import WEIGHTS
from pipelines.stages.labels import labels_pool
from pipelines.stages.plan import Graph
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.storage import Storage
from tests.cluster.ray_nodes import RayCluster, ray_cluster
from tests.jobs.recipes import IN_PLACE, read, run, write_recipe
from tests.pipelines.conftest import s3_bucket

__all__ = ["s3_bucket"]

BATCH = 6
"""Divisible by one, two and three workers."""


@dataclass(frozen=True)
class Result:
    """What a run left, in a form that does not depend on where its workspace lies."""

    metrics: dict[str, Any]
    labels: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, recipe: Path, workspace: str) -> Result:
        settings = read(recipe, "--workspace", workspace)
        graph = make_graph(settings)
        metrics = graph.output("evaluation").read_json("metrics.json")
        del metrics["checkpoint"]
        weights = load(graph.output("retrieval").read_bytes(f"{MODEL}/{WEIGHTS}"))
        return cls(metrics, _labels(graph, labels_pool(Storage(workspace), settings).storage), weights)


def _labels(graph: Graph, pool: Storage) -> list[dict[str, Any]]:
    """Every label, by video and text, read from where the index says."""
    index = graph.output("labels").read_table(INDEX_FILE)
    shards = {name: pool.read_table(name) for name in index.column("shard").unique().to_pylist()}
    rows = [shards[row["shard"]].slice(row["row"], 1) for row in index.to_pylist()]
    # The key of a video holds its address.
    return pa.concat_tables(rows).drop_columns(["key"]).to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated videos, every stage; each stage has enough pieces for three nodes."""
    return write_recipe(
        tmp_path_factory.mktemp("recipe"),
        data={
            "shapes": {
                "train_videos": 60,
                "test_videos": 24,
                "captions_per_video": 2,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
            "validation_videos": 12,
        },
        estimator={"epochs": 1, "batch_size": BATCH, "optimizer": {"lr": 1e-3}},
        retrieval={
            "epochs": 2,
            "batch_size": BATCH,
            "augmentation": {"operations": 1},
            "optimizer": {"lr": 1e-3, "clip_lr_factor": 1.0},
            "checkpoint": {"every_steps": 4},
        },
        evaluation={"bootstrap_samples": 50, "tile": 8},
        resources={"local_cpus": 4, "local_object_store_gb": 0.15, "labels": {"max_actors": 1}},
    )


@pytest.fixture(scope="session")
def one_machine(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that all others are compared with: one process, which does all of the work."""
    workspace = str(tmp_path_factory.mktemp("one-machine"))
    here = [
        word
        for stage, settings in IN_PLACE.items()
        for name, value in settings.items()
        for word in (f"--resources.{stage}.{name}", str(value))
    ]
    run(read(recipe, "--workspace", workspace, *here))
    return Result.of(recipe, workspace)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One node that takes jobs."""
    with ray_cluster(num_cpus=4) as started:
        yield started
