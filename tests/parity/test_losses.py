"""The building blocks of the loss against the published ones (case b3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from hbi_models.axes import Interaction
from hbi_models.losses import contrastive_loss, interaction_loss, kl_divergence
from tests.parity.conftest import Golden
from tests.parity.published_model import LOSSES, assert_features_equal


@pytest.fixture(name="arrays", scope="module")
def units(golden: Golden) -> Mapping[str, np.ndarray]:
    return golden.arrays("b3_loss_units")


def leaf(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(arrays[name]).requires_grad_()


def test_contrastive_loss(arrays: Mapping[str, np.ndarray]) -> None:
    logits = leaf(arrays, "A")
    loss = contrastive_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["nce"]), **LOSSES)
    assert_features_equal(logits.grad, arrays["nce_grad"], "nce_grad")


def test_kl_divergence_with_gradient_into_student_and_target(arrays: Mapping[str, np.ndarray]) -> None:
    student, target = leaf(arrays, "A"), leaf(arrays, "B")
    loss = kl_divergence(student, target)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["kl_AB"]), **LOSSES)
    assert_features_equal(student.grad, arrays["kl_AB_gradA"], "kl_AB_gradA")
    assert_features_equal(target.grad, arrays["kl_AB_gradB"], "kl_AB_gradB")


def test_interaction_loss_over_the_batch_axis(arrays: Mapping[str, np.ndarray]) -> None:
    prediction, target = leaf(arrays, "X"), torch.from_numpy(arrays["Y"])
    pairs, words, frames = target.shape
    over_frames, over_batch = interaction_loss(
        Interaction(prediction, target),
        torch.ones(pairs, words, dtype=torch.bool),
        torch.ones(pairs, frames, dtype=torch.bool),
        batch_axis_kl=True,
    )
    assert over_frames.item() == pytest.approx(float(arrays["kl3_XY"]), **LOSSES)
    assert over_batch.item() == pytest.approx(float(arrays["kl3_XY_T"]), **LOSSES)
    over_batch.backward()
    assert_features_equal(prediction.grad, arrays["kl3_XY_T_gradX"], "kl3_XY_T_gradX")
