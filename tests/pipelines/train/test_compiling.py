"""Compiled parts are the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hbi_models.configs import GameConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.recipe.training import AugmentationConfig, RetrievalTrainingConfig
from pipelines.stages.settings import counting
from pipelines.train.compiling import compile_parts
from tests.tiny_retrieval import retrieval_config


@pytest.mark.slow
def test_towers_and_predictors_are_compiled_and_keep_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    game = GameConfig(teacher="estimator", estimator_channels=8)
    model = RetrievalModel(retrieval_config(tmp_path, game=game)).eval()
    names = list(model.state_dict())
    texts = model.text_batch(["a red circle", "blue"])
    expected = model.encode_text(texts)
    assert compile_parts(model, backend="eager") == [
        "clip.visual",
        "clip.transformer",
        "temporal.transformer",
        *(f"predictors.{level}" for level in ("entity", "action", "event")),
        "teacher",
    ]
    assert list(model.state_dict()) == names
    for found, level in zip(model.encode_text(texts), expected, strict=True):
        torch.testing.assert_close(found.features, level.features)


def test_a_setting_that_changes_roundings_counts_where_it_is_set() -> None:
    plain = counting(RetrievalTrainingConfig())
    assert counting(RetrievalTrainingConfig(validation_batch_size=8)) == plain
    assert counting(RetrievalTrainingConfig(compiled=True)) == {**plain, "compiled": True}
    augmented = counting(RetrievalTrainingConfig(augmentation=AugmentationConfig(device="gpu")))
    assert augmented["augmentation"] == {**plain["augmentation"], "device": "gpu"}
    assert "compiled" not in plain
    assert "device" not in plain["augmentation"]
