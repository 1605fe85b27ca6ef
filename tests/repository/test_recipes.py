"""Every shipped recipe parses, is documented, and plans."""

from pathlib import Path

import pytest

from jobs.run import main
from jobs.settings import read_recipe, recipe_parser
from pipelines.configs import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs/recipes").glob("*.yaml"))


def recipe_of(path: Path, *overrides: str) -> Recipe:
    return read_recipe(recipe_parser("test"), ["--config", str(path), *overrides])[0]


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "msrvtt_retrieval"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_says_how_it_is_run(path: Path) -> None:
    recipe_of(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("command", "hardware", f"jobs/recipes/{path.name}"):
        assert word in text, f"the header of {path.name} does not say its {word}"
    if path.stem != "demo":
        assert "not run here" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["--workspace", str(tmp_path)]
    if recipe_of(path).data.shapes is None:
        # Published data cannot be had here: the same recipe plans over a small generated copy.
        overrides += ["--data.annotations", "null", "--data.videos", "null", "--data.shapes.train_videos", "8"]
    assert main(["--config", str(path), *overrides, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "retrieval" in printed and "evaluation" in printed and "never run" in printed


def test_msrvtt_recipe_has_the_published_values() -> None:
    recipe = recipe_of(ROOT / "jobs/recipes/msrvtt_retrieval.yaml")
    retrieval, estimator = recipe.retrieval, recipe.estimator
    assert (recipe.model.max_words, recipe.model.max_frames, recipe.frames.fps) == (24, 12, 1)
    assert (retrieval.batch_size, retrieval.epochs, retrieval.optimizer.lr) == (128, 5, 1e-4)
    assert retrieval.optimizer.clip_lr_factor == 1e-3
    assert (recipe.model.loss.kl, recipe.model.loss.skl) == (2, 1)
    assert (estimator.epochs, estimator.batch_size, estimator.optimizer.lr) == (10, 128, 1e-2)
