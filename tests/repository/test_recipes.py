"""Every shipped recipe parses, is documented, and plans."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from jobs import tune
from jobs.run import main
from pipelines.recipe.data import DataConfig
from pipelines.recipe.recipe import Recipe
from tests.dataset_copies import write_activitynet, write_didemo, write_msrvtt, write_msrvtt_qa, write_msvd
from tests.recipe_options import parsed_recipe, recipe_with

ROOT = Path(__file__).parents[2]
# A tune file is one over another recipe, with settings of its own.
RECIPES = sorted(path for path in (ROOT / "jobs/recipes").glob("*.yaml") if not path.stem.startswith("tune_"))


@cache
def recipe_of(path: Path) -> Recipe:
    return parsed_recipe("--config", str(path))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "msrvtt_retrieval"}


@pytest.mark.slow
def test_the_tests_read_recipes_as_the_commands_do(tmp_path: Path) -> None:
    part = tmp_path / "part.yaml"
    # By default questions are not augmented, and a section about augmentation alone would say that they are.
    part.write_text("video_qa: {augmentation: {operations: 1}, merging: {heads: 4}}\n")
    for path in (part, *RECIPES):
        assert recipe_with(yaml.safe_load(path.read_text())) == recipe_of(path), path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run_and_plans(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("command", "hardware", f"jobs/recipes/{path.name}"):
        assert word in text, f"the header of {path.name} does not say its {word}"
    if not path.stem.startswith("demo"):
        assert "not run here" in text
    overrides = ["--workspace", str(tmp_path / "workspace")]
    data = recipe_of(path).data
    if data.shapes is None:
        # Published data cannot be had here: the recipe plans over a small copy in the published layout.
        annotations = write_copy(data, tmp_path)
        overrides += ["--data.annotations", str(annotations), "--data.videos", str(tmp_path / "videos")]
        for training in ("estimator", "retrieval", "video_qa"):
            overrides += [f"--{training}.batch_size", "1", f"--resources.{training}.workers", "1"]
    assert main(["--config", str(path), *overrides, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "manifest" in printed and "evaluation" in printed and "never run" in printed


def write_copy(data: DataConfig, folder: Path) -> Path:
    """Annotations and (empty) videos of the recipe's data set; returns where the annotations are."""
    annotations = folder / ("captions.csv" if data.dataset == "captions_file" else "annotations")
    described = {"duration": 3, "timestamps": [[0, 3]], "sentences": ["one"]}
    if data.dataset == "msrvtt":
        train_list = data.msrvtt_train_list
        write_msrvtt(annotations, train={"video0": ["one"]}, test={"video1": "two"}, train_list=train_list)
    elif data.dataset == "msrvtt_qa":
        questions = {"train": "video0", "val": "video1", "test": "video2"}
        asked = [("who is it", "a dog"), ("what is it", "a cat")]
        write_msrvtt_qa(annotations, {split: [(video, *one) for one in asked] for split, video in questions.items()})
    elif data.dataset == "captions_file":
        rows = [f"video{number}.mp4,a dog runs,{split}" for number, split in enumerate(("train", "val", "test"))]
        annotations.write_text("\n".join(["path,caption,split", *rows]))
    elif data.dataset == "msvd":
        lists = {"train": ["video0"], "val": ["video1"], "test": ["video2"]}
        write_msvd(annotations, lists, {f"video{number}": ["one"] for number in range(3)})
    elif data.dataset == "activitynet":
        write_activitynet(annotations, {"train": {"v_0": described}, "val_1": {"v_1": described}})
    else:
        assert data.dataset == "didemo"
        write_didemo(
            annotations, {"train": {"video0": ["one"]}, "val": {"video1": ["two"]}, "test": {"video2": ["three"]}}
        )
    (folder / "videos").mkdir()
    for number in range(3):
        for name in (f"video{number}", f"v_{number}"):
            (folder / "videos" / f"{name}.mp4").touch()
    return annotations


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published command, or the default of the published code behind it, sets."""

    words: int
    frames: int
    epochs: int
    workers: int
    rates: tuple[float, float] = (0.25, 0.5)
    augmented: bool = False


MSRVTT = Published(words=24, frames=12, epochs=5, workers=2, augmented=True)
ACTIVITYNET = Published(words=64, frames=64, epochs=10, workers=8)

PUBLISHED = {
    "msrvtt_retrieval": MSRVTT,
    "msrvtt_retrieval_7k": MSRVTT,
    "msvd_retrieval": MSRVTT,
    "activitynet_retrieval": ACTIVITYNET,
    "activitynet_retrieval_authors": replace(ACTIVITYNET, frames=32, epochs=15, rates=(0.5, 0.25)),
    "didemo_retrieval": ACTIVITYNET,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), PUBLISHED.items(), ids=PUBLISHED)
def test_recipes_have_the_published_values(name: str, published: Published) -> None:
    recipe = recipe_of(ROOT / f"jobs/recipes/{name}.yaml")
    model, retrieval, estimator = recipe.model, recipe.retrieval, recipe.estimator
    assert recipe.seed == 42
    assert (recipe.frames.fps, recipe.frames.max_frames, recipe.frames.short_side_px) == (1, published.frames, 224)
    assert (model.clip.architecture, model.clip.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert (model.max_words, model.max_frames) == (published.words, published.frames)
    assert (model.merging.text_rates, model.merging.video_rates) == (published.rates, published.rates)
    assert (model.temporal.layers, model.level_rates, model.game.teacher) == (4, (1, 0, 0), "estimator")
    assert (model.loss.kl, model.loss.skl) == (2, 1)
    assert (retrieval.batch_size, retrieval.epochs) == (128, published.epochs)
    optimizer = retrieval.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.clip_lr_factor) == ("bert_adam", 1e-4, 1e-3)
    assert (optimizer.weight_decay, optimizer.warmup_fraction) == (0.2, 0.1)
    augmentation = retrieval.augmentation
    assert augmentation.enabled == published.augmented
    assert (augmentation.operations, augmentation.magnitude) == (4, 7)
    assert (estimator.epochs, estimator.batch_size) == (10, 128)
    assert (estimator.optimizer.name, estimator.optimizer.lr) == ("bert_adam", 1e-2)
    assert recipe.labels.kind == "published"
    assert recipe.resources.retrieval.workers == published.workers


def test_each_retrieval_recipe_of_a_published_data_set_is_compared_with_the_published_values() -> None:
    retrieval = {path.stem for path in RECIPES if path.stem.partition("_")[2].startswith("retrieval")}
    assert {name for name in retrieval if not name.endswith("_frozen")} == set(PUBLISHED)


FROZEN = sorted(path.stem for path in RECIPES if path.stem.endswith("_frozen") and path.stem != "demo_frozen")


def test_there_are_recipes_with_a_frozen_encoder() -> None:
    data_sets = ("activitynet_retrieval", "didemo_retrieval", "msrvtt_qa", "msrvtt_retrieval", "msvd_retrieval")
    assert [f"{name}_frozen" for name in data_sets] == FROZEN


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_encoder_is_all_that_such_a_recipe_changes(name: str) -> None:
    path = ROOT / f"jobs/recipes/{name}.yaml"
    frozen, base = recipe_of(path), recipe_of(path.with_stem(name.removesuffix("_frozen")))
    assert frozen.model.clip.train == "none" and frozen.features.precision == "bfloat16"
    trained = replace(frozen.model, clip=base.model.clip)
    apart = {"workspace": base.workspace, "resources": base.resources, "features": base.features, "model": trained}
    assert replace(frozen, **apart) == base
    # Storage and time are computed in the header.
    header = path.read_text().partition("workspace:")[0]
    assert "storage    computed: " in header and "time       computed: " in header
    for clips, frames, stated in re.findall(
        r"([\d,]+) (?:clips|videos) × (\d+) frames × 512 × 2 bytes\s+= (\d+) MB", header
    ):
        assert round(int(clips.replace(",", "")) * int(frames) * 512 * 2 / 1e6) == int(stated)
        break
    else:
        pytest.fail(f"the header of {name} does not compute the storage of its frames")


NUMBERS = {
    "msrvtt_retrieval": ("48.6 74.6 83.4 2 12.0", "46.8 74.3 84.3 2 8.9"),
    "activitynet_retrieval": ("42.2 73.0 84.6 2 6.6", "42.4 73.0 86.0"),
    "activitynet_retrieval_authors": ("42.2 73.0 84.6 2 6.6", "42.4 73.0 86.0"),
    "didemo_retrieval": ("46.9 74.9 82.7 2 12.1",),
}
"""R@1, R@5, R@10, median and mean rank that the paper reports, t2v and v2t."""


@pytest.mark.parametrize("name", NUMBERS)
def test_the_published_results_stand_in_the_recipe_and_in_the_documents(name: str) -> None:
    header = (ROOT / f"jobs/recipes/{name}.yaml").read_text().partition("workspace:")[0]
    rows = [line for line in (ROOT / "docs/datasets.md").read_text().splitlines() if line.startswith("|")]
    (row,) = (line for line in rows if f"{name}.yaml" in line)
    for direction, numbers in zip(("t2v", "v2t"), NUMBERS[name], strict=False):
        names = ("R@1", "R@5", "R@10", "MdR", "MnR")
        stated = ", ".join(f"{name} {number}" for name, number in zip(names, numbers.split(), strict=False))
        assert f"{direction} {stated}" in header
        assert " / ".join(numbers.split()) in row


@pytest.mark.slow
def test_a_tune_file_plans_and_says_how_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((ROOT / "jobs/recipes").glob("tune_*.yaml"))
    assert paths
    for path in paths:
        header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        (recipe,) = re.findall(r"--config (\S+)", header)
        assert f"--tune jobs/recipes/{path.name}" in header
        options = ["--config", str(ROOT / recipe), "--tune", str(path), "--workspace", str(tmp_path / "workspace")]
        assert tune.main([*options, "--plan"]) == 0
        assert "Stages that all trials share" in capsys.readouterr().out
    assert not (tmp_path / "workspace").exists()
