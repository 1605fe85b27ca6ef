"""The question answering model against the published one: forward, losses, gradients (case f)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from hbi_models.configs import LEVELS
from hbi_models.losses import video_qa_loss
from hbi_models.optimizer import parameter_groups
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.published_weights import our_name, video_qa_prefixes
from hbi_models.video_qa import VideoQAModel
from tests.parity.conftest import Golden
from tests.parity.published_model import (
    LOSSES,
    assert_features_equal,
    batches,
    check_gradients,
    check_level_losses,
    published_video_qa_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture(name="arrays", scope="module")
def case(golden: Golden) -> Mapping[str, np.ndarray]:
    return golden.arrays("f_vqa")


@pytest.fixture(name="built", scope="module")
def model_of_the_case(
    golden: Golden, arrays: Mapping[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> VideoQAModel:
    return published_video_qa_model(golden, int(arrays["weight_seed"]), tmp_path_factory.mktemp("vqa"))


@pytest.fixture(name="model")
def model_without_gradients(built: VideoQAModel) -> Iterator[VideoQAModel]:
    """The one model of this file, as if it were new."""
    yield built.train()
    built.zero_grad()


@pytest.mark.slow
@torch.no_grad()
def test_answers_equal_the_published_ones(arrays: Mapping[str, np.ndarray], model: VideoQAModel) -> None:
    model.eval()
    questions, videos = batches(arrays)
    text_levels, video_levels = model.encoder.encode_text(questions), model.encoder.encode_video(videos)
    assert_features_equal(text_levels[0].features, arrays["text_feat"], "words, padding included")
    assert_features_equal(video_levels[0].features, arrays["video_feat"], "frames")
    assert_features_equal(model.answer_logits(text_levels, video_levels), arrays["logits"], "mixed logits")
    for index, level in enumerate(LEVELS):
        rates = np.eye(len(LEVELS))[index].tolist()
        logits = model.answer_logits(text_levels, video_levels, rates)
        assert_features_equal(logits, arrays[f"{level}_logits"], f"{level} logits")


@pytest.mark.slow
def test_losses_and_gradients_equal_the_published_ones(arrays: Mapping[str, np.ndarray], model: VideoQAModel) -> None:
    answered = model(*batches(arrays), torch.from_numpy(arrays["labels"]))
    loss = video_qa_loss(answered, model.encoder.clip.logit_scale, config=model.config)
    names = check_level_losses(loss, arrays, prefix="train_")
    expected = {f"{level}_ce": float(arrays[f"train_{level}_ce"]) for level in LEVELS}
    expected |= {f"distill_{level}": float(arrays[f"train_distill_{level}"]) for level in LEVELS[1:]}
    expected["distill"] = float(arrays["train_distill_sum"])
    assert {name: loss.parts[name].item() for name in expected} == pytest.approx(expected, **LOSSES)
    assert loss.total.item() == pytest.approx(float(arrays["train_loss_total"]), **LOSSES)
    assert loss.parts.keys() == names | expected.keys() | set(LEVELS)
    loss.total.backward()
    check_gradients(model, arrays, video_qa_prefixes())


def test_optimizer_groups_equal_the_published_ones(golden: Golden, model: VideoQAModel) -> None:
    """Every parameter in its group; the published groups hold frozen and unused ones, too, which never move."""
    prefixes = video_qa_prefixes()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = parameter_groups(model.named_parameters(), OptimizerConfig(lr=1e-4, clip_lr_factor=1e-3, weight_decay=0.2))
    actual = {(group["lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]} for group in groups}
    expected = {
        (group["lr"], group["weight_decay"]): {our_name(name, prefixes) for name in group["names"]} & trained
        for group in golden.json("param_groups_vqa")
    }
    assert actual == expected
    assert set.union(*actual.values()) == trained
