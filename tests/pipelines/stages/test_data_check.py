"""Data that cannot serve are refused before any work, by a run, by one stage, by a plan and by a tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import GameConfig, RetrievalConfig
from hbi_models.published_weights import retrieval_to_published
from hbi_models.retrieval import RetrievalModel
from jobs.pipeline import execute
from jobs.settings import recipe_from_document
from jobs.tune import main as tune
from pipelines.datasets.answers import Vocabulary
from pipelines.graph import make_graph, make_index_graph, make_qa_evaluation_graph
from pipelines.recipe.data import DataConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AnswersConfig, RetrievalTrainingConfig, VideoQATrainingConfig
from pipelines.recipe.tuning import SamplerConfig, SchedulerConfig, TuningConfig
from pipelines.search.search_model import read_search_model
from pipelines.stages.data_check import foreseen_data, known_data
from pipelines.stages.execution import execute_step
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tracker import StageTracker
from pipelines.tracking.mlflow_runs import PipelineTracker
from pipelines.tune.checks import make_tuning, require_tuning_data
from pipelines.tune.inputs import InputStages
from pipelines.tune.run import run_tuning
from pipelines.tune.tuning import Tuning
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_FRAMES, retrieval_config

NOT_ENOUGH = r"retrieval\.batch_size is 8, .* train has 3 videos"


def own_data(folder: Path, *splits: str) -> Recipe:
    """A recipe over the user's own files, a video with a caption for each of ``splits``; a batch of eight."""
    lines = [f"{number}.mp4,a red dog,{split}" for number, split in enumerate(splits)]
    for number in range(len(splits)):
        (folder / f"{number}.mp4").touch()
    (folder / "own.csv").write_text("\n".join(["path,caption,split", *lines]) + "\n")
    return Recipe(
        workspace=str(folder / "workspace"),
        data=DataConfig(dataset="captions_file", annotations=str(folder / "own.csv"), validation_videos=0),
        model=RetrievalConfig(clip=ClipConfig(pretrained=None), game=GameConfig(teacher="exact")),
        retrieval=RetrievalTrainingConfig(batch_size=8),
    )


def tuning_of(recipe: Recipe, **config: Any) -> Tuning:
    settings: dict[str, Any] = {"space": {"model.loss.kl": "uniform 0 1"}, **config}
    settings |= {"sampler": SamplerConfig(name="random"), "scheduler": SchedulerConfig(name="none")}
    return make_tuning(recipe, TuningConfig(**settings), recipe_from_document)


def make_manifest(recipe: Recipe) -> None:
    graph = make_graph(recipe)
    (step,) = graph.plan(until_stage="manifest")
    execute_step(graph, step, tracker=StageTracker(), config=recipe)


SMALL = ("train", "train", "train", "val", "test")


@pytest.mark.parametrize("finished", [False, True])
def test_a_plan_refuses_them_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, finished: bool
) -> None:
    recipe = own_data(tmp_path, *SMALL)
    if finished:
        make_manifest(recipe)
    for options in ({}, {"until_stage": "retrieval"}, {"force": ["manifest"]}):
        with pytest.raises(ValueError, match=NOT_ENOUGH):
            execute(make_graph(recipe), recipe, plan_only=True, **options)
        assert "manifest" in capsys.readouterr().out, "the plan is shown all the same"
    assert execute(make_graph(recipe), recipe, plan_only=True, until_stage="frames") == 0
    assert Path(recipe.workspace, "manifest").exists() == finished


@pytest.mark.parametrize("stage", ["probe", "zero_shot"])
def test_the_plan_of_a_stage_that_only_measures_refuses_them(tmp_path: Path, stage: str) -> None:
    recipe = own_data(tmp_path, "train", "train")
    graph = make_graph(recipe)
    known = foreseen_data(graph, graph.plan(until_stage="frames"), recipe, [stage])
    with pytest.raises(ValueError, match="split is test, and no video of that split has captions"):
        known.require(recipe, [stage])


def test_a_single_stage_refuses_them(tmp_path: Path) -> None:
    recipe = own_data(tmp_path, *SMALL)
    make_manifest(recipe)
    graph = make_graph(recipe)
    with pytest.raises(ValueError, match=NOT_ENOUGH):
        execute(graph, recipe, from_stage="frames", until_stage="retrieval")
    assert not graph.output("frames").exists("")


def test_a_vocabulary_is_foreseen(tmp_path: Path) -> None:
    recipe = own_data(tmp_path, *SMALL)
    questions = [
        f"{number}.mp4,what,{answer},{split}"
        for number, (answer, split) in enumerate(zip(("dog", "cat", "dog", "ant", "dog"), SMALL, strict=True))
    ]
    (tmp_path / "questions.csv").write_text("\n".join(["video,question,answer,split", *questions]) + "\n")
    (tmp_path / "answers.json").write_text('{"bee": 0, "fox": 1}')
    recipe = replace(
        recipe,
        data=replace(recipe.data, questions=str(tmp_path / "questions.csv")),
        tasks=("video_qa",),
        video_qa=VideoQATrainingConfig(batch_size=2, answers=AnswersConfig(size=5)),
    )
    graph = make_graph(recipe)
    foreseen = foreseen_data(graph, graph.plan(), recipe, ["video_qa"])
    assert foreseen.vocabulary is not None
    assert foreseen.vocabulary.answers == ("dog", "cat")
    foreseen.require(recipe, ("video_qa", "qa_evaluation"))
    unfit = replace(
        recipe, video_qa=replace(recipe.video_qa, answers=AnswersConfig(file=str(tmp_path / "answers.json")))
    )
    with pytest.raises(ValueError, match="has 0 videos with questions that the vocabulary has an answer to"):
        execute(make_graph(unfit), unfit, plan_only=True)
    # The same that the stages write.
    for step in graph.plan(until_stage="answers"):
        execute_step(graph, step, tracker=StageTracker(), config=recipe)
    known = known_data(graph, ("manifest", "answers"))
    assert known.vocabulary is not None
    assert isinstance(known.vocabulary, Vocabulary)
    assert known.vocabulary.answers == foreseen.vocabulary.answers


def test_an_evaluation_alone_needs_no_training_questions(tmp_path: Path) -> None:
    recipe = own_data(tmp_path, "test", "test")
    (tmp_path / "questions.csv").write_text("video,question,answer,split\n0.mp4,what,dog,test\n")
    recipe = replace(recipe, data=replace(recipe.data, questions=str(tmp_path / "questions.csv")), tasks=("video_qa",))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text('{"kind": "video_qa", "config": {}}')
    (model / "model.safetensors").touch()
    (model / "answers.json").write_text('["dog", "cat"]')
    graph = make_qa_evaluation_graph(recipe, str(model))
    assert execute(graph, recipe, plan_only=True, until_stage="qa_evaluation") == 0


def test_a_collection_needs_no_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    torch.manual_seed(0)
    torch.save(retrieval_to_published(RetrievalModel(retrieval_config(tmp_path)).state_dict()), tmp_path / "model.bin")
    recipe = Recipe(
        workspace=str(tmp_path / "index"),
        model=retrieval_config(tmp_path),
        frames=FramesConfig(max_frames=MAX_FRAMES),
    )
    model = read_search_model(str(tmp_path / "model.bin"), recipe)
    graph, recipe = make_index_graph(recipe, str(tmp_path / "videos"), model)
    assert execute(graph, recipe, plan_only=True) == 0
    assert "index" in capsys.readouterr().out


def test_a_tuning_refuses_them_planned_or_run(tmp_path: Path) -> None:
    recipe = own_data(tmp_path, *SMALL)
    make_manifest(recipe)
    with pytest.raises(ValueError, match=NOT_ENOUGH):
        run_tuning(tuning_of(recipe))
    assert not {"frames", "tune"} & set(Storage(recipe.workspace).folders()), "nothing was begun"


@pytest.mark.slow
def test_the_plan_of_a_tuning_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(recipe: Recipe) -> int:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain(recipe)))
        return tune(["--config", str(tmp_path / "recipe.yaml"), "--tune", str(tmp_path / "tune.yaml"), "--plan"])

    settings = {"space": {"model.loss.kl": "uniform 0 1"}, "sampler": {"name": "random"}, "scheduler": {"name": "none"}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(settings))
    recipe = own_data(tmp_path, *SMALL)
    with pytest.raises(ValueError, match=NOT_ENOUGH):
        planned(recipe)
    assert "Stages that all trials share" in capsys.readouterr().out
    fitting = replace(recipe, retrieval=replace(recipe.retrieval, batch_size=3))
    assert planned(fitting) == 0
    own_data(tmp_path, "train", "train", "train", "train", "test")
    with pytest.raises(ValueError, match="the data has no validation split"):
        planned(fitting)
    assert not Path(recipe.workspace).exists()


def test_a_tuning_goes_on_with_the_trials_that_the_data_can_serve(tmp_path: Path) -> None:
    recipe = own_data(tmp_path, *SMALL)
    graph, size = make_graph(recipe), "retrieval.batch_size"
    known = foreseen_data(graph, graph.plan(), recipe, ["retrieval"])
    require_tuning_data(tuning_of(recipe, space={size: "choice 2 8"}), known)
    with pytest.raises(ValueError, match=NOT_ENOUGH):
        require_tuning_data(tuning_of(recipe, space={size: "choice 8 9"}), known)
    with pytest.raises(ValueError, match=r"tune\.baselines\.large: the data cannot serve this recipe"):
        require_tuning_data(tuning_of(recipe, space={size: "choice 2 3"}, baselines={"large": {size: 8}}), known)
    make_manifest(recipe)
    # Of this one trial, before anything is decoded for it: the driver then writes it down as failed.
    inputs = InputStages("retrieval", PipelineTracker.__new__(PipelineTracker), WeightsChecks())
    with pytest.raises(ValueError, match=NOT_ENOUGH):
        inputs.ready(recipe)
