from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hbi_models.configs import GameConfig, OptimizerConfig, RetrievalConfig
from jobs.settings import read_recipe, recipe_parser
from pipelines.configs import DataConfig, Recipe, RetrievalTrainingConfig, ShapesConfig
from pipelines.graph import make_evaluation_graph, make_graph

STAGES = ["shapes", "manifest", "frames", "labels", "estimator", "retrieval", "evaluation"]


def recipe(workspace: Path, *options: str) -> Recipe:
    """Generated data and a trained estimator, so that every stage takes part."""
    arguments = ["--data.shapes.train_videos", "30", "--model.game.teacher", "estimator", "--estimator.epochs", "2"]
    return read_recipe(recipe_parser("A test."), [*arguments, "--workspace", str(workspace), *options])[0]


def changed(workspace: Path, *options: str) -> list[str]:
    """The stages that would run again with other settings."""
    before, after = make_graph(recipe(workspace)), make_graph(recipe(workspace, *options))
    return [name for name in after.fingerprints if before.fingerprints.get(name) != after.fingerprints[name]]


def test_a_recipe_makes_the_stages_in_order(tmp_path: Path) -> None:
    graph = make_graph(recipe(tmp_path))
    assert [stage.name for stage in graph.stages] == STAGES
    for position, stage in enumerate(graph.stages):
        assert set(stage.inputs) <= set(STAGES[:position])


def test_stages_that_nobody_needs_are_left_out(tmp_path: Path) -> None:
    exact = make_graph(recipe(tmp_path, "--model.game.teacher", "exact"))
    assert [stage.name for stage in exact.stages] == ["shapes", "manifest", "frames", "retrieval", "evaluation"]
    asked = make_graph(recipe(tmp_path, "--model.game.teacher", "exact", "--estimator.enabled", "true"))
    assert [stage.name for stage in asked.stages] == STAGES
    evaluated = make_evaluation_graph(recipe(tmp_path), "/checkpoint")
    assert [stage.name for stage in evaluated.stages] == ["shapes", "manifest", "frames", "evaluation"]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--data.shapes.seed", "1"], STAGES),
        (["--data.validation_videos", "3"], STAGES[1:]),
        (["--frames.fps", "2"], STAGES[2:]),
        (["--frames.format", "png"], STAGES[2:]),
        (["--labels.kind", "published"], STAGES[3:]),
        (["--labels.captions_per_video", "1"], STAGES[3:]),
        (["--estimator.epochs", "3"], STAGES[4:]),
        (["--retrieval.batch_size", "64"], STAGES[5:]),
        (["--retrieval.optimizer.lr", "3e-4"], STAGES[5:]),
        (["--model.loss.kl", "1"], STAGES[5:]),
        (["--evaluation.split", "val"], STAGES[6:]),
        (["--evaluation.level_rates", "[1, 1, 0]"], STAGES[6:]),
        (["--model.temporal.layers", "2"], STAGES[3:]),
        (["--seed", "1"], STAGES[3:]),
    ],
)
def test_a_setting_invalidates_its_stage_and_what_follows_from_it(
    tmp_path: Path, options: list[str], stages: list[str]
) -> None:
    assert changed(tmp_path, *options) == stages


@pytest.mark.parametrize(
    "options",
    [
        ["--resources.retrieval.workers", "2"],
        ["--resources.local_cpus", "1"],
        ["--resources.labels.gpus_per_actor", "1"],
        ["--tracking.experiment", "other"],
        ["--tracking.log_model", "false"],
        ["--frames.timeout_s", "10"],
        ["--frames.videos_per_shard", "3"],
        ["--frames.max_error_fraction", "0.5"],
        ["--labels.batch_size", "3"],
        ["--labels.videos_per_shard", "3"],
        ["--estimator.checkpoint.every_steps", "10"],
        ["--retrieval.checkpoint.every_steps", "10"],
        ["--evaluation.batch_size", "3"],
        ["--evaluation.tile", "3"],
    ],
)
def test_how_the_work_is_done_invalidates_nothing(tmp_path: Path, options: list[str]) -> None:
    assert changed(tmp_path, *options) == []


def test_another_workspace_does_not_change_what_is_made(tmp_path: Path) -> None:
    one, other = (make_graph(recipe(tmp_path / name)) for name in ("one", "other"))
    assert one.fingerprints == other.fingerprints
    assert one.output("frames").uri != other.output("frames").uri


def test_a_recipe_without_estimator_does_not_depend_on_its_settings(tmp_path: Path) -> None:
    model = RetrievalConfig(game=GameConfig(teacher="exact"))
    base = Recipe(workspace=str(tmp_path), data=DataConfig(shapes=ShapesConfig()), model=model)
    other = replace(base, estimator=replace(base.estimator, optimizer=OptimizerConfig(lr=0.5)))
    assert make_graph(base).fingerprints == make_graph(other).fingerprints
    trained = replace(base, retrieval=RetrievalTrainingConfig(epochs=1))
    assert make_graph(base).fingerprints != make_graph(trained).fingerprints


def test_annotations_that_are_not_there_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.annotations is not set"):
        make_graph(Recipe(workspace=str(tmp_path)))
    with pytest.raises(FileNotFoundError):
        make_graph(
            Recipe(
                workspace=str(tmp_path),
                data=DataConfig(annotations=str(tmp_path / "none"), videos=str(tmp_path / "none")),
            )
        )
