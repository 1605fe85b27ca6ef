from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import GameConfig, RetrievalConfig
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.datasets.answers import Vocabulary
from pipelines.graph import (
    make_evaluation_graph,
    make_graph,
    make_index_graph,
    make_probe_graph,
    make_qa_evaluation_graph,
)
from pipelines.recipe.data import DataConfig, ShapesConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import RetrievalTrainingConfig
from pipelines.search.search_model import SearchModel
from pipelines.stages.settings import checkpoint_digest
from pipelines.workspace.contents import content_digest
from pipelines.workspace.storage import Storage
from tests.recipe_options import recipe_with

STAGES = ["shapes", "manifest", "frames", "labels", "estimator", "retrieval", "evaluation"]


def recipe(workspace: Path, *options: str) -> Recipe:
    """Generated data and a trained estimator, so that every stage takes part."""
    document = {
        "workspace": str(workspace),
        "data": {"shapes": {"train_videos": 30}},
        "model": {"game": {"teacher": "estimator"}},
        "estimator": {"epochs": 2},
        "report": {"enabled": False},
    }
    return recipe_with(document, *options)


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
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    evaluated = make_evaluation_graph(recipe(tmp_path), str(tmp_path / "pytorch_model.bin"))
    assert [stage.name for stage in evaluated.stages] == ["shapes", "manifest", "frames", "evaluation"]


BOTH = ["--tasks", '["retrieval", "video_qa"]']
ALONE = ["--tasks", '["video_qa"]']
ANSWERING = ["video_qa", "qa_evaluation"]
FROZEN = ["--model.clip.train", "none", "--retrieval.augmentation.enabled", "false"]


def test_a_frozen_encoder_puts_features_between_frames_and_all_that_comes_after(tmp_path: Path) -> None:
    trained, frozen = make_graph(recipe(tmp_path, *BOTH)), make_graph(recipe(tmp_path, *BOTH, *FROZEN))
    names = [stage.name for stage in frozen.stages]
    assert names == [*STAGES[:2], "answers", "frames", "features", *STAGES[3:], *ANSWERING]
    readers = {stage.name for stage in frozen.stages if "features" in stage.inputs}
    assert readers == {"labels", "retrieval", "evaluation", "video_qa", "qa_evaluation"}
    assert [stage.name for stage in frozen.stages if "frames" in stage.inputs] == ["features"]
    # Everything before is shared with trainings of the encoder.
    assert {name for name in trained.fingerprints if trained.fingerprints[name] == frozen.fingerprints[name]} == {
        *STAGES[:3],
        "answers",
    }


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--model.loss.kl", "1"], False),
        (["--model.merging.neighbours", "2"], False),
        (["--model.temporal.layers", "2"], False),
        (["--features.batch_size", "2"], False),
        (["--features.max_memory_gb", "1"], False),
        (["--labels.batch_size", "2"], False),
        (["--features.dtype", "float32"], True),
        (["--features.precision", "bfloat16"], True),
        (["--model.max_words", "12"], True),
        (["--features.views", "2", "--retrieval.augmentation.enabled", "true"], True),
        (["--frames.fps", "2"], True),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_features_are_made_again_for_what_changes_them_alone(tmp_path: Path, options: list[str], changes: bool) -> None:
    before, after = make_graph(recipe(tmp_path, *FROZEN)), make_graph(recipe(tmp_path, *FROZEN, *options))
    assert (before.fingerprints["features"] != after.fingerprints["features"]) == changes
    pools = [{stage.name: stage.writes for stage in graph.stages}["features"] for graph in (before, after)]
    assert (pools[0] != pools[1]) == changes


def test_another_encoder_makes_all_features_anew(tmp_path: Path) -> None:
    weights = tmp_path / "clip.pt"
    weights.write_bytes(b"one")
    options = [*FROZEN, "--model.clip.pretrained", str(weights)]
    before = make_graph(recipe(tmp_path, *options))
    assert (
        make_graph(recipe(tmp_path, *options, "--seed", "1")).fingerprints["features"]
        == (before.fingerprints["features"])
    ), "the seed draws nothing of it"
    weights.write_bytes(b"other")
    after = make_graph(recipe(tmp_path, *options))
    changed = [name for name in after.fingerprints if before.fingerprints[name] != after.fingerprints[name]]
    assert changed == ["features", *STAGES[3:]]
    drawn = [make_graph(recipe(tmp_path, *FROZEN, "--model.clip.pretrained", "null", "--seed", seed)) for seed in "12"]
    assert drawn[0].fingerprints["features"] != drawn[1].fingerprints["features"]


def test_what_starts_from_another_encoder_reads_frames(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "model"))
    folder.write_json("model.json", {"kind": "retrieval", "config": {}})
    folder.write_bytes("model.safetensors", b"weights")
    graph = make_graph(recipe(tmp_path, *FROZEN, "--labels.checkpoint", folder.uri))
    inputs = {stage.name: stage.inputs for stage in graph.stages}
    assert "frames" in inputs["labels"] and "features" in inputs["retrieval"]
    graph = make_graph(recipe(tmp_path, *FROZEN, "--retrieval.init_checkpoint", folder.uri))
    inputs = {stage.name: stage.inputs for stage in graph.stages}
    assert "frames" in inputs["labels"] and "features" in inputs["retrieval"] and "features" in inputs["evaluation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FROZEN[:2], "retrieval.augmentation is enabled, and a frozen encoder sees each clip once"),
        ([*FROZEN, "--features.views", "2"], "features.views is 2, and no training uses them"),
        (["--features.views", "2"], "no features are stored, because the encoder is trained"),
        ([*FROZEN, "--model.quirks.encode_padding", "true"], "model.quirks.encode_padding reads those of padding"),
    ],
    ids=["augmentation", "unused views", "no features", "padding"],
)
def test_settings_that_contradict_a_frozen_encoder_are_refused(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as raised:
        recipe(tmp_path, *options)
    assert message in f"{raised.value} {capsys.readouterr().err}"


def test_the_report_comes_after_all_and_depends_on_all(tmp_path: Path) -> None:
    graph = make_graph(recipe(tmp_path, "--report.enabled", "true"))
    assert [stage.name for stage in graph.stages] == [*STAGES, "report"]
    assert graph.stages[-1].inputs == tuple(STAGES)
    again = make_graph(recipe(tmp_path, "--report.enabled", "true", "--report.queries", "3"))
    assert {name for name, value in again.fingerprints.items() if graph.fingerprints[name] != value} == {"report"}


def test_the_tasks_say_what_is_trained(tmp_path: Path) -> None:
    both = make_graph(recipe(tmp_path, *BOTH))
    assert [stage.name for stage in both.stages] == [*STAGES[:2], "answers", *STAGES[2:], *ANSWERING]
    for stage in both.stages:
        assert set(stage.inputs) <= both.fingerprints.keys()
    alone = make_graph(recipe(tmp_path, *ALONE))
    assert [stage.name for stage in alone.stages] == [*STAGES[:2], "answers", *STAGES[2:5], *ANSWERING]
    # Neither task depends on the other, so results of one are found by a recipe for both.
    retrieval = make_graph(recipe(tmp_path))
    assert {**retrieval.fingerprints, **alone.fingerprints} == both.fingerprints
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    evaluated = make_qa_evaluation_graph(recipe(tmp_path), str(tmp_path / "pytorch_model.bin"))
    assert [stage.name for stage in evaluated.stages] == [*STAGES[:2], "answers", "frames", "qa_evaluation"]


def test_a_model_of_ours_is_evaluated_with_its_own_answers(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "model"))
    with pytest.raises(FileNotFoundError, match=r"is neither a folder with model\.json nor a published file"):
        make_qa_evaluation_graph(recipe(tmp_path), folder.uri)
    folder.write_json("model.json", {"kind": "retrieval", "config": {}})
    with pytest.raises(ValueError, match="holds a model of kind 'retrieval'"):
        make_qa_evaluation_graph(recipe(tmp_path), folder.uri)
    folder.write_json("model.json", {"kind": "video_qa", "config": {}})
    with pytest.raises(FileNotFoundError, match=r"holds no answers\.json"):
        make_qa_evaluation_graph(recipe(tmp_path), folder.uri)
    Vocabulary(["yes", "no"]).write(folder)
    folder.write_bytes("model.safetensors", b"weights")
    graph = make_qa_evaluation_graph(recipe(tmp_path), folder.uri)
    settings = {stage.name: stage.settings for stage in graph.stages}
    assert settings["answers"] == {"digest": content_digest(folder.path("answers.json"))}
    assert settings["qa_evaluation"]["checkpoint"] == checkpoint_digest(folder.uri)


def test_question_answering_may_start_from_the_retrieval_model(tmp_path: Path) -> None:
    graph = make_graph(recipe(tmp_path, *BOTH, "--video_qa.from_retrieval", "true"))
    (stage,) = (stage for stage in graph.stages if stage.name == "video_qa")
    assert "retrieval" in stage.inputs
    assert "retrieval" in {step.stage.name for step in graph.plan(until_stage="video_qa")}


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--video_qa.answers.size", "9"], ["answers", *ANSWERING]),
        (["--video_qa.batch_size", "64"], ANSWERING),
        (["--video_qa.max_words", "16"], ANSWERING),
        (["--video_qa.merging.neighbours", "2"], ANSWERING),
        (["--video_qa.loss.kl", "1"], ANSWERING),
        (["--video_qa.head.hidden", "16"], ANSWERING),
        (["--video_qa.max_questions_per_video", "2"], ANSWERING),
        (["--qa_evaluation.split", "val"], ANSWERING[1:]),
        (["--qa_evaluation.level_rates", "[1, 0, 0]"], ANSWERING[1:]),
        # What questions have of their own does not reach retrieval, and the other way round.
        (["--model.loss.kl", "1"], ["retrieval", "evaluation"]),
        (["--retrieval.epochs", "1"], ["retrieval", "evaluation"]),
        (["--video_qa.precision", "bfloat16"], ANSWERING),
        (["--video_qa.merging.tie_break_noise", "1e-6"], ANSWERING),
        # The question answering model has words, merges, losses and rates of its own.
        (["--model.max_words", "16"], [*STAGES[3:], *ANSWERING]),
        (["--model.merging.neighbours", "2"], ["retrieval", "evaluation"]),
        (["--model.level_rates", "[1, 1, 0]"], ["retrieval", "evaluation"]),
        (["--model.clip.freeze_embeddings", "true"], ["retrieval", "evaluation", *ANSWERING]),
        (["--model.clip.gradient_checkpointing", "true"], []),
        (["--video_qa.checkpoint.every_steps", "3"], []),
        (["--qa_evaluation.batch_size", "3"], []),
        (["--resources.video_qa.workers", "2"], []),
        (["--resources.qa_evaluation.max_actors", "2"], []),
    ],
)
def test_a_setting_of_question_answering_invalidates_its_stages(
    tmp_path: Path, options: list[str], stages: list[str]
) -> None:
    before, after = make_graph(recipe(tmp_path, *BOTH)), make_graph(recipe(tmp_path, *BOTH, *options))
    assert [name for name in after.fingerprints if before.fingerprints[name] != after.fingerprints[name]] == stages


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
        (["--model.clip.pretrained", "laion2b_e16"], STAGES[3:]),
        (["--model.game.similarity_scale", "10"], STAGES[3:]),
        (["--labels.precision", "bfloat16"], STAGES[3:]),
        # Labels are made of single words and frames, by a model that is not trained.
        (["--model.merging.neighbours", "2"], STAGES[5:]),
        (["--model.clip.freeze_embeddings", "true"], STAGES[5:]),
        (["--model.clip.freeze_patch_embedding", "false"], STAGES[5:]),
        (["--model.quirks.zero_floor", "true"], STAGES[5:]),
        (["--retrieval.precision", "bfloat16"], STAGES[5:]),
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
        ["--data.max_missing_fraction", "0.5"],
        ["--model.clip.gradient_checkpointing", "true"],
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


def test_a_probe_needs_a_trained_model_or_a_given_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no retrieval model that this recipe has trained"):
        make_probe_graph(recipe(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    probed = make_probe_graph(recipe(tmp_path), str(tmp_path / "pytorch_model.bin"))
    assert [stage.name for stage in probed.stages] == ["shapes", "manifest", "frames", "probe"]


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ([], RetrievalConfig(clip=ClipConfig(train="none"))),
        ([*FROZEN[:2], "--features.views", "2"], RetrievalConfig()),
        (["--model.game.teacher", "exact", "--estimator.enabled", "false"], RetrievalConfig()),
    ],
    ids=["frozen", "views of a frozen one", "taught by an estimator"],
)
def test_settings_of_trainings_do_not_decide_whether_a_model_makes_an_index(
    tmp_path: Path, options: list[str], model: RetrievalConfig
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    given = SearchModel("model", replace(model, max_frames=6), FramesConfig(max_frames=6, short_side_px=64), "digest")
    graph, made = make_index_graph(recipe(tmp_path, *options), str(tmp_path / "videos"), given)
    assert [stage.name for stage in graph.stages] == ["manifest", "frames", "index"]
    assert made.model.clip.train == model.clip.train and made.frames.short_side_px == 64
