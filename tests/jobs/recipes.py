"""Recipes for tests, as a user writes them, and ways to run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.run import run_plan
from pipelines.stages.execution import Outcome
from pipelines.stages.plan import Graph
from pipelines.stages.pooled import PooledStage
from tests.mlflow_database import copy_database
from tests.recipe_options import recipe_with
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES, MAX_WORDS, write_architecture

RAY: dict[str, Any] = {"local_cpus": 4, "local_object_store_gb": 0.15}

TASKS_AND_ACTORS: dict[str, Any] = {
    "decode": {"max_tasks": 2},
    **{stage: {"max_actors": 1} for stage in ("labels", "evaluation", "qa_evaluation")},
}
"""Tasks of Ray Data that decode, and an actor of each kind: each loads PyTorch, which takes ten seconds of a core."""

IN_PLACE: dict[str, Any] = {
    "decode": {"max_tasks": 0},
    **{stage: {"max_actors": 0} for stage in ("labels", "evaluation", "qa_evaluation")},
    **{stage: {"workers": 0} for stage in ("estimator", "retrieval", "video_qa")},
}
"""All work in the process of the run. A group of training workers takes half a minute to start."""

RESOURCES = {**RAY, **IN_PLACE}


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Returns the path of a recipe with the tiny model; keywords replace or add sections."""
    document = {
        "workspace": str(folder / "workspace"),
        "seed": 1,
        "frames": {"fps": 4, "max_frames": MAX_FRAMES, "short_side_px": IMAGE_PX, "videos_per_shard": 4},
        "model": {
            "clip": {
                "architecture": write_architecture(folder),
                "pretrained": None,
                "freeze_patch_embedding": False,
            },
            "temporal": {"layers": 1},
            "merging": {"text_rates": [0.5, 0.5], "video_rates": [0.5, 0.5], "heads": 4},
            "game": {"teacher": "estimator", "estimator_channels": 8},
            "max_words": MAX_WORDS,
            "max_frames": MAX_FRAMES,
        },
        "labels": {"videos_per_shard": 6, "batch_size": 5},
        "estimator": {"epochs": 1, "batch_size": 8, "optimizer": {"lr": 1e-3}},
        "retrieval": {
            "epochs": 1,
            "batch_size": 8,
            "augmentation": {"operations": 1},
            "optimizer": {"lr": 1e-3, "clip_lr_factor": 1.0},
        },
        "evaluation": {"bootstrap_samples": 50},
        "resources": RESOURCES,
        "report": {"enabled": False},
        # One run of all has its models logged, which takes seconds.
        "tracking": {"every_steps": 1, "log_model": False},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    if "://" not in document["workspace"]:
        copy_database(Path(document["workspace"]))
    return path


def read(path: Path, *options: str) -> Recipe:
    """The recipe in ``path`` with command-line options."""
    return recipe_with(yaml.safe_load(path.read_text()), *options)


def run(recipe: Recipe, graph: Graph | None = None, **options: Any) -> dict[str, Outcome]:
    """Plans and runs in this process; what was done with each stage."""
    graph = graph or make_graph(recipe)
    return {outcome.step.stage.name: outcome for outcome in run_plan(graph, graph.plan(**options), recipe)}


def actions(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """``done`` or ``skipped`` by stage."""
    return {name: outcome.action for name, outcome in outcomes.items()}


def command(recipe: Path, *options: str) -> list[str]:
    """The command line of the whole pipeline."""
    return [sys.executable, "-m", "jobs.run", "--config", str(recipe), *options]


def run_command(
    line: Sequence[str], *, timeout_s: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, in ``folder``."""
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=folder)


def raise_version(monkeypatch: pytest.MonkeyPatch, stage: type[PooledStage]) -> None:
    """As an edit of the stage's file raises its version."""
    version = stage.version + 1
    monkeypatch.setattr(stage, "version", version)
    # The names of pools are made from it, without the class.
    monkeypatch.setattr(f"{stage.__module__}.VERSION", version, raising=False)
