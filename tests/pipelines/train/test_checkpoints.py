from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hbi_models.config_reading import config_from_plain
from hbi_models.configs import GameConfig, MergingConfig, RetrievalConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.models.weights import load_model, load_weights, read_description, save_model
from pipelines.train.checkpoints import TRAINING, Position, load_training, save_training
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import retrieval_config


@pytest.fixture
def config(tmp_path: Path) -> RetrievalConfig:
    return retrieval_config(tmp_path)


@pytest.mark.slow
def test_a_model_comes_back_as_it_was(config: RetrievalConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RetrievalModel(config)
    save_model(tmp_path, model, kind="retrieval", config=config)
    loaded = load_model(Storage(str(tmp_path)), tmp_path / "scratch")
    assert loaded.config == config.with_clip(replace(config.clip, architecture=str(tmp_path / "architecture.json")))
    assert not loaded.training
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_loading_a_model_does_not_ask_for_the_weights_that_clip_started_from(
    config: RetrievalConfig, tmp_path: Path
) -> None:
    model = RetrievalModel(config)
    started_from = replace(config, clip=replace(config.clip, pretrained="/no/longer/there.pt"))
    save_model(tmp_path, model, kind="retrieval", config=started_from)
    load_model(Storage(str(tmp_path)), tmp_path / "scratch")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, nn.Linear(2, 2), kind="estimator", config=GameConfig())
    with pytest.raises(ValueError, match="holds a model of kind 'estimator'; a model of kind 'retrieval' is needed"):
        load_model(Storage(str(tmp_path)), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model.json; give the folder of a checkpoint"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "missing 1.weight; missing 1.bias"),
        (nn.Sequential(), "left over 0.bias; left over 0.weight"),
        (nn.Sequential(nn.Linear(2, 4)), r"0.weight is \(3, 2\), needed \(4, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, other: nn.Module, problem: str) -> None:
    save_model(tmp_path, nn.Sequential(nn.Linear(2, 3)), kind="any", config={})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=problem):
        load_weights(tmp_path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    save_model(tmp_path, nn.Sequential(), kind="any", config={})
    with pytest.raises(ValueError, match=r"missing 2.weight and 3 more"):
        load_weights(tmp_path, nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]))


def test_a_configuration_comes_back_from_json(config: RetrievalConfig) -> None:
    changed = replace(
        config,
        merging=MergingConfig(text_rates=(0.3, 0.6), heads=4),
        game=GameConfig(teacher="estimator"),
        level_rates=(0.5, 0.3, 0.2),
    )
    document = json.loads(json.dumps(plain(changed)))
    assert config_from_plain(RetrievalConfig, document, place="here") == changed


def test_unknown_settings_of_a_checkpoint_are_refused(config: RetrievalConfig) -> None:
    document = plain(config)
    document["temporal"]["dropout"] = 0.1
    with pytest.raises(ValueError, match="temporal has no setting dropout; it has init_from_clip_text, layer"):
        config_from_plain(RetrievalConfig, document, place="here")


def test_invalid_settings_of_a_checkpoint_are_refused(config: RetrievalConfig) -> None:
    with pytest.raises(ValueError, match="max_frames is 0"):
        config_from_plain(RetrievalConfig, plain(config) | {"max_frames": 0}, place="here")


def test_training_state_comes_back(tmp_path: Path) -> None:
    def make() -> tuple[nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(model: nn.Linear, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
        model(torch.ones(3)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    model, optimizer, schedule = make()
    step(model, optimizer, schedule)
    position = Position(epoch=1, step_in_epoch=2, step=7)
    save_training(tmp_path, optimizer=optimizer, schedule=schedule.state_dict(), position=position)

    other, other_optimizer, other_schedule = make()
    other.load_state_dict(model.state_dict())
    saved = load_training(tmp_path, optimizer=other_optimizer)
    other_schedule.load_state_dict(dict(saved.schedule))
    assert saved.position == position
    assert saved.weights is None and saved.average is None
    for _ in range(2):
        step(model, optimizer, schedule)
        step(other, other_optimizer, other_schedule)
    assert torch.equal(model.weight, other.weight)
    assert other_schedule.get_last_lr() == schedule.get_last_lr()


def test_nothing_is_unpickled_from_a_checkpoint(tmp_path: Path) -> None:
    position = Position()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)
    save_training(tmp_path, optimizer=optimizer, schedule={}, position=position)
    torch.save({"optimizer": Path("/"), "schedule": {}}, tmp_path / TRAINING)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_training(tmp_path, optimizer=optimizer)
