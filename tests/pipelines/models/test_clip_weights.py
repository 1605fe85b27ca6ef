"""Weights that a tag names are fetched once, and reach every process through the workspace."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip.factory
import open_clip.pretrained
import pytest
import torch
from torch import Tensor

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.loading import build_clip
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.labels import make_label_model
from pipelines.models.clip_weights import hand_out, handed_out, local_weights
from pipelines.models.folder import MODEL
from pipelines.models.weights import load_model, save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ResourcesConfig, TrainResources
from pipelines.recipe.training import RetrievalTrainingConfig
from pipelines.stages.frames import frames_pool
from pipelines.stages.labels import LabelsStage, labels_pool
from pipelines.stages.plan import Graph
from pipelines.stages.retrieval import retrieval_stage
from pipelines.stages.stage import Stage, StageContext
from pipelines.stages.weights_check import WeightsChecks, require_weights
from pipelines.tracker import StageTracker
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.runs import forget_run, leftovers
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import ARCHITECTURE, MAX_FRAMES, retrieval_config, retrieval_task, write_split_data
from tests.tiny_video_qa import video_qa_config, video_qa_task, write_question_data

NAME, TAG = "tiny-released", "first_release"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an architecture that open_clip knows, with a tag: what its hub, or its cache, would hold."""
    torch.manual_seed(7)
    file = tmp_path / "hub" / "released.bin"
    file.parent.mkdir()
    torch.save(build_clip(ARCHITECTURE).state_dict(), file)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, ARCHITECTURE)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {TAG: {"file": str(file), "mean": (0.5, 0.5, 0.5)}})
    return file


@pytest.fixture
def recipe(release: Path, tmp_path: Path) -> Recipe:
    clip = ClipConfig(architecture=NAME, pretrained=TAG, freeze_patch_embedding=False)
    return Recipe(
        workspace=str(tmp_path / "workspace"),
        model=retrieval_config(tmp_path, clip=clip),
        frames=FramesConfig(max_frames=MAX_FRAMES),
        retrieval=RetrievalTrainingConfig(epochs=1, batch_size=2),
        resources=ResourcesConfig(retrieval=TrainResources(workers=0, gpus_per_worker=0.0)),
    )


def released_weights(release: Path) -> Mapping[str, Tensor]:
    weights: Mapping[str, Tensor] = torch.load(release, weights_only=True)
    return weights


def pending(recipe: Recipe, stage: Stage) -> Graph:
    """A graph of which the stage is to come."""
    return Graph(Storage(recipe.workspace), [replace(stage, inputs=(), partial=lambda inputs, output: None)])


def context(recipe: Recipe, inputs: Mapping[str, Artifact] | None = None) -> StageContext:
    workspace = Storage(recipe.workspace)
    return StageContext(workspace, workspace.folder("output"), inputs or {}, StageTracker())


def test_actors_need_neither_the_hub_nor_a_cache(recipe: Recipe, release: Path) -> None:
    expected = released_weights(release)
    stage = LabelsStage(recipe)
    require_weights(pending(recipe, stage.stage()).plan(), recipe)
    release.unlink()
    workspace = Storage(recipe.workspace)
    job = stage.job(context(recipe), labels_pool(workspace, recipe), 0, 1)
    assert job.constructor is not None
    model = make_label_model(job.constructor["settings"])
    for name, tensor in expected.items():
        torch.testing.assert_close(model.clip.state_dict()[name], tensor, rtol=0, atol=0)
    assert model.clip.pixel_mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_a_training_needs_neither_the_hub_nor_a_cache(recipe: Recipe, release: Path, tmp_path: Path) -> None:
    data = write_split_data(tmp_path / "data", {"train": (1, 1)})
    workspace = Storage(recipe.workspace)
    shutil.copytree(data.path("pool"), frames_pool(workspace, recipe).storage.path())
    stage = retrieval_stage(recipe)
    require_weights(pending(recipe, stage).plan(), recipe)
    release.unlink()
    inputs = {name: Artifact(name, "f", data.folder(name), {"counts": {}}) for name in ("manifest", "frames")}
    stage.run(context(recipe, inputs))
    model = load_model(workspace.folder("output", MODEL), tmp_path)
    assert model.config.clip.pretrained is None
    assert model.config.clip.pixel_mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_handed_out_weights_make_the_same_models_as_the_tag(recipe: Recipe, tmp_path: Path) -> None:
    hand_out(Storage(recipe.workspace), recipe.model.clip)
    handed = handed_out(Storage(recipe.workspace), recipe.model.clip)
    assert handed is not None
    file = local_weights(handed, tmp_path)
    answering = video_qa_config(tmp_path)
    answering = replace(answering, encoder=replace(answering.encoder, clip=recipe.model.clip))
    for make, config in ((RetrievalModel, recipe.model), (VideoQAModel, answering)):
        torch.manual_seed(1)
        first: Any = make(config)
        torch.manual_seed(1)
        second: Any = make(config, file)
        torch.testing.assert_close(dict(second.state_dict()), dict(first.state_dict()), rtol=0, atol=0)
        assert second.config == first.config


def test_they_are_fetched_once_for_a_workspace_and_made_again_where_they_are_damaged(
    recipe: Recipe, release: Path, tmp_path: Path
) -> None:
    workspace, content = Storage(recipe.workspace), release.read_bytes()
    hand_out(workspace, recipe.model.clip)
    release.unlink()
    hand_out(workspace, recipe.model.clip)
    handed = handed_out(workspace, recipe.model.clip)
    assert handed is not None
    (file,) = Path(handed.path()).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="has changed since it was put there"):
        local_weights(handed, tmp_path)
    release.write_bytes(content)
    hand_out(workspace, recipe.model.clip)
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_a_training_from_a_checkpoint_asks_for_no_tag(recipe: Recipe, release: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    start = RetrievalModel(recipe.model)
    (tmp_path / "start").mkdir()
    save_model(tmp_path / "start", start, kind="retrieval", config=recipe.model)
    release.unlink()
    data = write_split_data(tmp_path / "data", {"train": (1, 1)})
    task = retrieval_task(data, recipe.model, (1, 1), batch_size=2, init_checkpoint=str(tmp_path / "start"))
    torch.testing.assert_close(dict(task.make_model().state_dict()), dict(start.state_dict()), rtol=0, atol=0)
    questions = write_question_data(tmp_path / "questions", {"train": (1, 1, 1, 1)})
    answering = video_qa_config(tmp_path)
    answering = replace(answering, encoder=recipe.model)
    model: Any = video_qa_task(questions, answering, init_checkpoint=str(tmp_path / "start")).make_model()
    torch.testing.assert_close(dict(model.encoder.state_dict()), dict(start.state_dict()), rtol=0, atol=0)


def test_a_workspace_keeps_them_as_long_as_a_run_needs_them(recipe: Recipe) -> None:
    graph = pending(recipe, retrieval_stage(recipe))
    run = graph.record(recipe)
    require_weights(graph.plan(), recipe)
    assert leftovers(graph.workspace) == []
    forget_run(graph.workspace, run)
    (found,) = leftovers(graph.workspace)
    handed = handed_out(graph.workspace, recipe.model.clip)
    assert handed is not None
    assert handed.uri == graph.workspace.folder(found.folder).uri


def test_a_local_file_is_read_where_it_is(recipe: Recipe, release: Path) -> None:
    local = replace(recipe.model.clip, pretrained=str(release))
    hand_out(Storage(recipe.workspace), local)
    assert handed_out(Storage(recipe.workspace), local) is None
    assert not Path(recipe.workspace, "weights").exists()


def test_each_recipe_of_a_tuning_has_its_own(recipe: Recipe, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {tag: {"file": str(release)} for tag in ("second_release", "third_release")}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, tags)
    checks = WeightsChecks()
    for tag in tags:
        clip = replace(recipe.model.clip, pretrained=tag)
        trial = replace(recipe, model=replace(recipe.model, clip=clip))
        checks.require(pending(trial, retrieval_stage(trial)).plan(), trial)
        assert handed_out(Storage(recipe.workspace), clip) is not None
    torch.save({}, release)
    other = replace(trial, retrieval=replace(trial.retrieval, init_checkpoint=str(release)))
    with pytest.raises(ValueError, match="does not fit the model"):
        checks.require(pending(other, retrieval_stage(other)).plan(), other)
