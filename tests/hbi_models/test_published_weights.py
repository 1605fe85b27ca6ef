"""Names of published checkpoints: round trips, and what is missing or left over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.configs import GameConfig
from hbi_models.published_weights import (
    estimator_from_published,
    estimator_to_published,
    retrieval_from_published,
    retrieval_to_published,
    video_qa_from_published,
    video_qa_to_published,
)
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from tests.hbi_models.tiny_model import tiny_config, tiny_video_qa_config
from tests.parity.conftest import PARITY_DIR, Golden
from tests.parity.published_model import published_model


@pytest.fixture(name="golden", scope="module")
def golden_folder() -> Golden:
    return Golden(PARITY_DIR)


def without_batch_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".bn." not in f".{name}"}


@pytest.mark.slow
def test_a_published_retrieval_checkpoint_survives_the_round_trip(golden: Golden, tmp_path: Path) -> None:
    published = golden.weights("keys_retrieval", seed=3)
    model = published_model(golden, "ret", 3, tmp_path)
    exported = retrieval_to_published(model.state_dict())
    assert exported.keys() == published.keys()
    assert {name: value.shape for name, value in exported.items()} == {n: v.shape for n, v in published.items()}
    assert all(torch.equal(exported[name], value) for name, value in without_batch_norm(published).items())


def test_a_published_estimator_checkpoint_survives_the_round_trip(golden: Golden) -> None:
    published = golden.weights("keys_estimator", seed=3)
    estimator = InteractionEstimator(channels=len(published["Q"]))
    estimator.load_state_dict(estimator_from_published(published))
    exported = estimator_to_published(estimator.state_dict())
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[name], value) for name, value in without_batch_norm(published).items())


def test_unused_entries_are_exported_as_initialised() -> None:
    exported = estimator_to_published(InteractionEstimator(channels=4).state_dict())
    expected = torch.nn.BatchNorm2d(4).state_dict()
    actual = {name.removeprefix("bn."): value for name, value in exported.items() if name.startswith("bn.")}
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.fixture(name="model")
def tiny_model(tmp_path: Path) -> RetrievalModel:
    return RetrievalModel(tiny_config(tmp_path, game=GameConfig(teacher="estimator", estimator_channels=4)))


@pytest.fixture(name="video_qa_model")
def tiny_video_qa_model(tmp_path: Path) -> VideoQAModel:
    return VideoQAModel(
        tiny_video_qa_config(tmp_path, encoder={"game": GameConfig(teacher="estimator", estimator_channels=4)})
    )


def test_a_question_answering_model_survives_the_round_trip(golden: Golden, video_qa_model: VideoQAModel) -> None:
    ours = video_qa_model.state_dict()
    published = video_qa_to_published(ours)
    # The golden towers have two blocks each and a deeper temporal encoder than the tiny model.
    blocks = {name for name in golden.json("keys_vqa") if ".resblocks.1." in name}
    assert published.keys() == (golden.json("keys_vqa").keys() - blocks) | {
        name for name in blocks if name.startswith("clip.transformer.")
    }
    again = video_qa_from_published(published, ours.keys())
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_a_question_answering_checkpoint_must_fit(video_qa_model: VideoQAModel) -> None:
    ours = video_qa_model.state_dict()
    published = video_qa_to_published(ours)
    published["classifier2.0.weight"] = published.pop("v_weight1.0.bias")
    missing, left_over = r"answer_heads\.event\.video_importance\.0\.bias", r"classifier2\.0\.weight"
    with pytest.raises(ValueError, match=rf"missing: 1 \({missing}\).*left over: 1 \({left_over}\)"):
        video_qa_from_published(published, ours.keys())


def test_the_teacher_of_a_question_answering_model_is_left_out(video_qa_model: VideoQAModel, tmp_path: Path) -> None:
    published = video_qa_to_published(video_qa_model.state_dict())
    student = VideoQAModel(tiny_video_qa_config(tmp_path))
    assert student.encoder.teacher is None
    student.load_state_dict(video_qa_from_published(published, student.state_dict().keys()))
    assert torch.equal(
        student.answer_heads["event"].classifier[2].weight, video_qa_model.answer_heads["event"].classifier[2].weight
    )


def test_unused_published_buffers_are_ignored(model: RetrievalModel) -> None:
    ours = model.state_dict()
    published = retrieval_to_published(ours) | {"clip.attn_mask": torch.zeros(2, 2)}
    assert retrieval_from_published(published, ours.keys()).keys() == ours.keys()


def test_missing_and_left_over_tensors_are_listed(model: RetrievalModel) -> None:
    ours = model.state_dict()
    published = retrieval_to_published(ours)
    del published["banzhafmodel0.Q"]
    published["classifier.0.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"missing: 1 \(predictors\.action\.query\).*left over: 1 \(classifier\.0\.weight\)"
    ):
        retrieval_from_published(published, ours.keys())


def test_an_estimator_checkpoint_must_be_complete() -> None:
    published = estimator_to_published(InteractionEstimator(channels=4).state_dict())
    del published["Q"]
    with pytest.raises(ValueError, match=r"missing: 1 \(query\)"):
        estimator_from_published(published)


def test_the_teacher_is_left_out_where_the_model_has_none(model: RetrievalModel, tmp_path: Path) -> None:
    published = retrieval_to_published(model.state_dict())
    student = RetrievalModel(tiny_config(tmp_path))
    student.load_state_dict(retrieval_from_published(published, student.state_dict().keys()))
    assert torch.equal(student.text_merges["event"].conv.weight, model.text_merges["event"].conv.weight)


def test_tensors_without_a_published_name_are_refused() -> None:
    with pytest.raises(ValueError, match="answer_head"):
        retrieval_to_published({"answer_head.weight": torch.zeros(1)})
