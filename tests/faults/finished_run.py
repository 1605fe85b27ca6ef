"""A small run that nothing happens to, as far as a test needs it, and workspaces that hold its first stages alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load

from pipelines.graph import make_graph
from pipelines.models.folder import MODEL
from pipelines.models.weights import WEIGHTS
from pipelines.recipe.recipe import Recipe, Task
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import labels_pool
from pipelines.train.files import HISTORY, RAY_SNAPSHOT, RAY_TRAIN
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage
from tests.jobs.killing import kill_when
from tests.jobs.recipes import RESOURCES, command, read, run, write_recipe
from tests.recipe_options import recipe_with

CHECKPOINT_EVERY = 5
"""Steps between two checkpoints of a training."""


@dataclass(frozen=True)
class FinishedRun:
    """A recipe whose stages are done in the process of the tests, each at the first time that a test asks for it.

    What its workers and actors give is the same, but for question answering, whose weights rounding drives apart by
    more than 1e-5 where the workers are fewer.
    """

    recipe_file: Path

    def finish(self, stage: str) -> None:
        """Does a stage, and those before it, if they are not done."""
        resources = {**RESOURCES, "video_qa": {"workers": 2}}
        run(recipe_with(yaml.safe_load(self.recipe_file.read_text()) | {"resources": resources}), until_stage=stage)

    @property
    def recipe(self) -> Recipe:
        return read(self.recipe_file)

    @property
    def stages(self) -> list[str]:
        return [stage.name for stage in make_graph(self.recipe).stages]

    def kill(self, recipe: Recipe, stage: str, condition: Callable[[], bool], *options: str) -> None:
        """Starts the command of ``recipe`` up to a stage, and kills its driver as soon as ``condition`` holds."""
        place = ("--workspace", recipe.workspace, "--until_stage", stage)
        kill_when(command(self.recipe_file, *place, *options), condition, timeout_s=400)

    def until_before(self, stage: str, folder: Path) -> Recipe:
        """Finishes ``stage``; the same recipe in a workspace in ``folder`` that holds what was there when it began."""
        self.finish(stage)
        return self._copy(self.stages[: self.stages.index(stage)], folder)

    def until(self, stage: str, folder: Path) -> Recipe:
        """Finishes ``stage``; the same recipe in a workspace in ``folder`` that holds it and the stages before it."""
        self.finish(stage)
        return self._copy(self.stages[: self.stages.index(stage) + 1], folder)

    def _copy(self, stages: list[str], folder: Path) -> Recipe:
        recipe = replace(self.recipe, workspace=str(folder / "workspace"))
        done, begun = make_graph(self.recipe), make_graph(recipe)
        copied = [(done.output(name), begun.output(name)) for name in stages]
        copied += [
            (pools(self.recipe)[name].storage, pools(recipe)[name].storage) for name in pools(recipe) if name in stages
        ]
        for source, target in copied:
            shutil.copytree(source.path(), target.path())
        return recipe


def write_full_recipe(folder: Path, *tasks: Task) -> Path:
    """A recipe of all stages of ``tasks``, with enough steps and shards to be killed among them."""
    optimizer = {"lr": 1e-3, "clip_lr_factor": 1.0}
    training = {
        "batch_size": 8,
        "augmentation": {"operations": 1},
        "optimizer": optimizer,
        "checkpoint": {"every_steps": CHECKPOINT_EVERY},
    }
    return write_recipe(
        folder,
        tasks=list(tasks),
        data={
            "validation_videos": 12,
            "shapes": {
                "train_videos": 84,
                "test_videos": 12,
                "captions_per_video": 1,
                "image_size_px": 32,
                "duration_s": 2.0,
            },
        },
        labels={"videos_per_shard": 3, "batch_size": 3},
        estimator={
            "epochs": 12,
            "batch_size": 8,
            "optimizer": {"lr": 1e-3},
            "checkpoint": {"every_steps": CHECKPOINT_EVERY},
        },
        retrieval={**training, "epochs": 4},
        video_qa={
            **training,
            "epochs": 4,
            "max_words": 16,
            "merging": {"text_rates": [0.5, 0.5], "video_rates": [0.5, 0.5], "heads": 4},
            "head": {"projection": 16, "hidden": 16},
        },
        # Many short calls of the actors.
        evaluation={"bootstrap_samples": 50, "tile": 1},
        qa_evaluation={"bootstrap_samples": 50, "batch_size": 1},
        resources={
            "local_cpus": 4,
            "local_object_store_gb": 0.15,
            "labels": {"max_actors": 1},
            "evaluation": {"max_actors": 1},
            "qa_evaluation": {"max_actors": 1},
            **{stage: {"workers": 2} for stage in ("estimator", "retrieval", "video_qa")},
        },
    )


def pools(recipe: Recipe) -> dict[str, ShardPool]:
    """The pools of shards, by the stage that fills them."""
    workspace = Storage(recipe.workspace)
    return {"frames": frames_pool(workspace, recipe), "labels": labels_pool(workspace, recipe)}


def paces(recipe: Recipe, training: str) -> dict[int, float]:
    """How fast each step was that a training told of: a figure that no second run of the step gives again."""
    points = _points(make_graph(recipe).output(training))
    return {point["step"]: point["throughput/pairs_per_s"] for point in points if "throughput/pairs_per_s" in point}


def _points(training: Storage) -> Iterator[dict[str, Any]]:
    return map(json.loads, training.read_bytes(HISTORY).splitlines())


def kept_step(recipe: Recipe, training: str) -> int:
    """The step of the checkpoint that a training goes on from."""
    output = make_graph(recipe).output(training)
    snapshot = json.loads(output.read_bytes(RAY_SNAPSHOT))
    latest = snapshot["checkpoint_results"][-1]["checkpoint_dir_name"]
    return int(output.read_json(f"{RAY_TRAIN}/{latest}/position.json")["step"])


def done_twice(before: dict[int, float], after: dict[int, float]) -> list[int]:
    """The steps that were told of before and done once more."""
    assert before.keys() <= after.keys()
    return sorted(step for step, pace in before.items() if after[step] != pace)


def assert_same_weights(recipe: Recipe, expected: Recipe, training: str) -> None:
    """The models that two runs chose are the same up to rounding."""
    file = f"{MODEL}/{WEIGHTS}"
    found, wanted = (load(make_graph(run).output(training).read_bytes(file)) for run in (recipe, expected))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
