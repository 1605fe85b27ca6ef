"""Weights that cannot be had or do not fit are found before the first stage starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import AnswerHeadConfig
from hbi_models.published_weights import video_qa_to_published
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.weights import save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig, VideoQATrainingConfig
from pipelines.stages.plan import Step
from pipelines.stages.retrieval import retrieval_stage
from pipelines.stages.stage import Stage
from pipelines.stages.weights_check import WeightsChecks, require_answering_weights, require_weights
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import MAX_FRAMES, retrieval_config
from tests.tiny_video_qa import VOCABULARY


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        workspace=str(tmp_path / "workspace"),
        model=retrieval_config(tmp_path),
        frames=FramesConfig(max_frames=MAX_FRAMES),
    )


def pending(recipe: Recipe) -> list[Step]:
    return [Step(retrieval_stage(recipe), "f", "missing", "never run")]


def test_weights_that_are_nowhere_are_named_with_what_to_do(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    clip = ClipConfig(architecture="ViT-B-32-quickgelu", pretrained="openai")
    steps = pending(replace(recipe, model=replace(recipe.model, clip=clip)))
    with pytest.raises(
        ValueError, match=r"'openai' of ViT-B-32-quickgelu .* set model.clip.pretrained to a local file"
    ):
        require_weights(steps, replace(recipe, model=replace(recipe.model, clip=clip)))
    require_weights([replace(step, state="done") for step in steps], recipe)


def test_an_encoder_that_cannot_be_used_is_refused_before_any_video_is_decoded(recipe: Recipe) -> None:
    def changed(**settings: object) -> Recipe:
        return replace(recipe, model=replace(recipe.model, clip=replace(recipe.model.clip, **settings)))  # type: ignore[arg-type]

    for unusable, reason in (
        (changed(architecture="coca_ViT-B-32"), "a class token"),
        (changed(architecture="PE-Core-L-14-336"), r"takes images of 336 x 336 pixels; set it to 336 or more"),
        (
            replace(
                changed(architecture="PE-Core-B-16"),
                model=replace(changed(architecture="PE-Core-B-16").model, max_words=40),
            ),
            "has 32 text positions",
        ),
        (changed(pretrained="no_such_tag"), r"clip\.pretrained is 'no_such_tag'"),
        (changed(tokenizer="nowhere.json"), "it must be a file tokenizer.json"),
    ):
        with pytest.raises(ValueError, match=reason):
            require_weights(pending(unusable), unusable)
    require_weights(pending(recipe), recipe)


def test_a_checkpoint_of_another_model_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = replace(
        recipe.model,
        game=replace(recipe.model.game, teacher="none"),
        merging=replace(recipe.model.merging, heads=4),
        temporal=replace(recipe.model.temporal, layers=2, init_from_clip_text=False),
    )
    torch.save(RetrievalModel(other).state_dict(), tmp_path / "other.bin")
    training = RetrievalTrainingConfig(init_checkpoint=str(tmp_path / "other.bin"))
    starting = replace(recipe, retrieval=training)
    with pytest.raises(ValueError, match="does not fit the model"):
        require_weights(pending(starting), starting)
    # A folder of ours has its own configuration, which is not that of the training.
    (tmp_path / "other").mkdir()
    save_model(tmp_path / "other", RetrievalModel(other), kind="retrieval", config=other)
    starting = replace(recipe, retrieval=RetrievalTrainingConfig(init_checkpoint=str(tmp_path / "other")))
    with pytest.raises(ValueError, match="do not fit the configured model"):
        require_weights(pending(starting), starting)


def test_a_checkpoint_that_fits_is_taken(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", RetrievalModel(recipe.model), kind="retrieval", config=recipe.model)
    starting = replace(recipe, retrieval=RetrievalTrainingConfig(init_checkpoint=str(tmp_path / "model")))
    require_weights(pending(starting), starting)


def test_a_tuning_checks_each_size_of_frames_and_questions(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = WeightsChecks()
    checks.require(pending(recipe), recipe)
    small = replace(recipe, frames=replace(recipe.frames, short_side_px=16))
    with pytest.raises(ValueError, match=r"frames.short_side_px is 16, .* takes images of 32 x 32 pixels"):
        checks.require(pending(small), small)
    monkeypatch.setattr("pipelines.stages.weights_check.find_spec", lambda _: None)
    training = RetrievalTrainingConfig(image_decoding="gpu", augmentation=AugmentationConfig(enabled=False))
    decoding = replace(recipe, retrieval=training)
    with pytest.raises(ValueError, match="torchcodec is not installed"):
        checks.require(pending(decoding), decoding)


def answering(recipe: Recipe, start: Path, **settings: Any) -> Recipe:
    given: dict[str, Any] = {"head": AnswerHeadConfig(projection=16, hidden=24), "max_words": recipe.model.max_words}
    training = VideoQATrainingConfig(init_checkpoint=str(start), merging=recipe.model.merging, **given | settings)
    return replace(recipe, video_qa=training)


def waiting(name: str, **settings: Any) -> list[Step]:
    stage = Stage(name=name, version=1, settings={}, inputs=(), run=lambda context: {}, **settings)
    return [Step(stage, "f", "missing", "never run")]


def test_a_start_of_question_answering_is_refused_once_its_answers_are_known(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    fitting = answering(recipe, tmp_path / "model")
    config = fitting.video_qa_model(len(VOCABULARY))
    save_model(tmp_path / "model", VideoQAModel(config), kind="video_qa", config=config)
    VOCABULARY.write(Storage(str(tmp_path / "model")))
    steps = waiting("video_qa")
    for vocabulary in (VOCABULARY, None):
        require_answering_weights(steps, fitting, vocabulary)
    with pytest.raises(ValueError, match="chooses from 7 answers that are not the 2 of this recipe"):
        require_answering_weights(steps, fitting, Vocabulary(["yes", "no"]))
    wider = answering(recipe, tmp_path / "model", head=AnswerHeadConfig(projection=16, hidden=48))
    checks = WeightsChecks()
    checks.require_answering(steps, fitting, VOCABULARY)
    for require in (require_answering_weights, checks.require_answering):
        with pytest.raises(ValueError, match="do not fit the configured model"):
            require(steps, wider, VOCABULARY)
    require_answering_weights([replace(step, state="done") for step in steps], wider, VOCABULARY)


def test_a_given_model_that_answers_is_refused_once_its_answers_are_known(recipe: Recipe, tmp_path: Path) -> None:
    place = tmp_path / "published.bin"
    recipe = answering(recipe, place)
    model = VideoQAModel(recipe.video_qa_model(len(VOCABULARY)))
    torch.save(video_qa_to_published(model.state_dict()), place)
    steps = waiting("qa_evaluation", reads={"the checkpoint of qa_evaluation": str(place)})
    require_answering_weights(steps, recipe, VOCABULARY)
    with pytest.raises(ValueError, match="do not fit the configured model"):
        require_answering_weights(steps, recipe, Vocabulary(["yes", "no"]))


@pytest.mark.parametrize("installed", [False, True])
def test_a_decoder_that_is_not_installed_is_missed_before_any_video_is_decoded(
    recipe: Recipe, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.stages.weights_check.find_spec", lambda _: object() if installed else None)
    augmentation = AugmentationConfig(enabled=False)
    training = RetrievalTrainingConfig(image_decoding="gpu", augmentation=augmentation)
    recipe = replace(recipe, retrieval=training)
    if installed:
        require_weights(pending(recipe), recipe)
    else:
        with pytest.raises(ValueError, match=r"retrieval.image_decoding is gpu, and torchcodec is not installed: pip"):
            require_weights(pending(recipe), recipe)
    require_weights([replace(step, state="done") for step in pending(recipe)], recipe)
