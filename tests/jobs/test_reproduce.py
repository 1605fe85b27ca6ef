"""``jobs.reproduce``: a recipe over seeds, beside figures that the recipe says were published."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from jobs.reproduce import TABLES, main
from jobs.run import main as run_main
from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.storage import Storage
from tests.jobs.recipes import read, write_recipe

SEEDS = (3, 4)
PUBLISHED = {"text_to_video/recall_at_1": 48.6, "video_to_text/mean_rank": 8.9}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {"train_videos": 12, "test_videos": 6, "captions_per_video": 1, "image_size_px": 32, "duration_s": 2.0}
    return write_recipe(
        tmp_path_factory.mktemp("reproduce"),
        data={"validation_videos": 4, "shapes": shapes},
        report={"enabled": False, "published": PUBLISHED},
    )


@pytest.mark.slow
def test_seeds_are_run_and_stand_beside_the_published_figures(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = recipe_file.parent / "reproduction"
    options = ["--config", str(recipe_file), "--model.game.teacher", "none"]
    assert main([*options, "--seeds", str(list(SEEDS)), "--output", str(output)]) == 0
    printed = capsys.readouterr().out

    recipes = [read(recipe_file, "--model.game.teacher", "none", "--seed", str(seed)) for seed in SEEDS]
    documents = [make_graph(recipe).output("evaluation").read_json("metrics.json") for recipe in recipes]
    assert [document["protocol"]["checkpoint"]["seed"] for document in documents] == list(SEEDS)
    values = [document["text_to_video"]["recall_at_1"]["value"] for document in documents]
    mean = sum(values) / 2
    (row,) = [line for line in printed.splitlines() if line.startswith("text → video R@1 ")]
    assert "48.6" in row and f"{mean:.1f}" in row and f"{mean - 48.6:+.1f}" in row
    low, high = stats.t.interval(0.95, 1, loc=mean, scale=stats.sem(values)) if len(set(values)) > 1 else (mean, mean)
    assert f"{low:.1f}–{high:.1f}" in row
    (row,) = [line for line in printed.splitlines() if line.startswith("text → video R@5 ")]
    assert row.split()[4] == "–", "there is no published figure"
    assert "Ours: 6 captions (1 a video) and 6 videos" in printed
    stored = Storage(str(output)).read_json("reproduction.json")
    assert stored["measured"]["text_to_video/recall_at_1"] == values and stored["published"] == PUBLISHED

    # Frames are made once, and the same command again does nothing.
    assert len(list((Path(recipes[0].workspace) / "frames").iterdir())) == 1
    assert main([*options, "--seeds", str(list(SEEDS))]) == 0
    assert capsys.readouterr().out.count("Nothing to do") == len(SEEDS)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_a_recipe_with_published_figures_or_says_that_none_are_known(name: str) -> None:
    recipe: Recipe = read(Path("jobs/recipes") / f"{TABLES[name]}.yaml")
    assert bool(recipe.report.published) == (name not in ("msrvtt_7k", "msvd", "msrvtt_qa", "demo"))


def test_a_table_is_planned_for_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--workspace", str(tmp_path), "--seeds", "[1,2]", "--plan"]
    assert main(["--table", "demo", *options]) == 0
    planned = capsys.readouterr().out
    assert planned.count("never run") >= 2 and "Seed 1\n" in planned and "Seed 2\n" in planned
    # As jobs.run plans it with that seed.
    assert run_main(["--config", "jobs/recipes/demo.yaml", "--workspace", str(tmp_path), "--seed", "2", "--plan"]) == 0
    alone = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if "never run" in line}
    for stage in ("retrieval", "evaluation"):
        assert alone[stage] in planned


def test_unknown_tables_and_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="--table is 'imagenet'; there are: msrvtt, "):
        main(["--table", "imagenet"])
    with pytest.raises(ValueError, match=r"--seeds is \[1, 1\]; give different seeds"):
        main(["--table", "demo", "--seeds", "[1,1]", "--plan"])
