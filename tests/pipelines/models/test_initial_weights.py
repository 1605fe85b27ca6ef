"""Checkpoints of ours and of the published code start a training and are evaluated."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.configs import GameConfig, RetrievalConfig, VideoQAConfig
from hbi_models.published_weights import estimator_to_published, retrieval_to_published
from hbi_models.retrieval import RetrievalModel
from pipelines.labels import LabelSettings, make_label_model
from pipelines.models.initial_weights import (
    checkpoint_kind,
    initialise_estimator_from,
    initialise_from,
    load_checkpoint,
    load_video_qa_checkpoint,
)
from pipelines.models.weights import save_model
from pipelines.recipe.labels import LabelsConfig
from tests.hbi_models.tiny_model import tiny_config


def make_model(config: RetrievalConfig, seed: int) -> RetrievalModel:
    torch.manual_seed(seed)
    return RetrievalModel(config)


def taught(config: RetrievalConfig, teacher: str) -> RetrievalConfig:
    return replace(config, game=replace(config.game, teacher=teacher))  # type: ignore[arg-type]


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    others = second.state_dict()
    for name, value in first.state_dict().items():
        if not name.startswith("teacher."):
            torch.testing.assert_close(value, others[name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_model.bin.3", "pytorch_model.bin"])
def test_a_published_file_fills_a_model(tmp_path: Path, name: str) -> None:
    config = tiny_config(tmp_path)
    source, target = make_model(taught(config, "estimator"), 0), make_model(config, 1)
    torch.save(retrieval_to_published(source.state_dict()), tmp_path / name)
    initialise_from(str(tmp_path / name), target, tmp_path)
    assert_same_weights(source, target)
    assert_same_weights(source, load_checkpoint(str(tmp_path / name), taught(config, "estimator"), tmp_path))


def test_our_folder_fills_a_model_with_another_teacher(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for ours, theirs in (("estimator", "exact"), ("none", "estimator")):
        source, target = make_model(taught(config, ours), 0), make_model(taught(config, theirs), 1)
        folder = tmp_path / ours
        folder.mkdir()
        save_model(folder, source, kind="retrieval", config=source.config)
        initialise_from(str(folder), target, tmp_path)
        assert_same_weights(source, target)


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    source = make_model(replace(config, temporal=replace(config.temporal, layers=0)), 0)
    torch.save(retrieval_to_published(source.state_dict()), tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"temporal\.transformer"):
        initialise_from(str(tmp_path / "model.bin"), make_model(config, 1), tmp_path)


def test_an_estimator_starts_from_a_published_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = InteractionEstimator(8), InteractionEstimator(8)
    torch.save(estimator_to_published(source.state_dict()), tmp_path / "estimator.pth")
    initialise_estimator_from(str(tmp_path / "estimator.pth"), target, tmp_path)
    assert_same_weights(source, target)


@pytest.mark.parametrize("name", ["a b", "a#b", "what?", "100%", "a%20b", "ü"])
def test_a_published_file_in_any_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    torch.manual_seed(0)
    source, target = InteractionEstimator(8), InteractionEstimator(8)
    file = tmp_path / name / f"{name}.pth"
    file.parent.mkdir()
    torch.save(estimator_to_published(source.state_dict()), file)
    monkeypatch.chdir(file.parent)
    for place in (str(file), file.as_uri(), file.name):
        initialise_estimator_from(place, target, tmp_path)
        assert_same_weights(source, target)
        torch.nn.init.zeros_(next(target.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["nowhere", "nowhere.bin"])
def test_a_missing_checkpoint_is_named(tmp_path: Path, checkpoint: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(str(tmp_path / checkpoint), RetrievalConfig(game=GameConfig()), tmp_path)


def test_a_published_retrieval_model_has_no_answers(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    torch.save(retrieval_to_published(make_model(config, 0).state_dict()), tmp_path / "model.bin")
    assert checkpoint_kind(str(tmp_path / "model.bin"), tmp_path) == "retrieval"
    with pytest.raises(ValueError, match=r"model\.bin holds a published model without answers"):
        load_video_qa_checkpoint(str(tmp_path / "model.bin"), VideoQAConfig(encoder=config), tmp_path)


def test_a_clip_of_transformers_is_no_checkpoint_to_start_from(tmp_path: Path) -> None:
    torch.save({"text_model.encoder.layers.0.layer_norm1.weight": torch.ones(2)}, tmp_path / "clip.bin")
    with pytest.raises(ValueError, match=r"transformers' CLIPModel; name it in model\.clip\.pretrained"):
        initialise_from(str(tmp_path / "clip.bin"), make_model(tiny_config(tmp_path), 0), tmp_path)


def test_labels_are_made_with_a_published_file_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    source = make_model(config, 0)
    torch.save(retrieval_to_published(source.state_dict()), tmp_path / "model.bin")
    made = make_label_model(LabelSettings(config, LabelsConfig(checkpoint=str(tmp_path / "model.bin")), seed=1))
    assert_same_weights(source, made)
