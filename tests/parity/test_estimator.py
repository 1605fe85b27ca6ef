"""The estimator network against the published one, forward and backward (case d)."""

from __future__ import annotations

import re

import pytest
import torch
from einops import rearrange

from hbi_models.banzhaf.estimator import InteractionEstimator
from tests.parity.conftest import Golden

PUBLISHED_NAMES = {
    "Q": "query",
    "K": "key",
    "V": "value",
    "cnn1.weight": "conv_in.weight",
    "cnn1.bias": "conv_in.bias",
    "cnn2.weight": "conv_out.weight",
    "cnn2.bias": "conv_out.bias",
}


def estimator_with_published_weights(golden: Golden, seed: int) -> InteractionEstimator:
    weights = golden.weights("keys_estimator", seed)
    estimator = InteractionEstimator(channels=weights["Q"].shape[0])
    estimator.load_state_dict({ours: weights[theirs] for theirs, ours in PUBLISHED_NAMES.items()})
    return estimator


def test_outputs_losses_and_gradients_equal_the_published_network(golden: Golden) -> None:
    arrays = golden.arrays("d_estimator")
    sizes = [match.group(1) for key in arrays if (match := re.fullmatch(r"x_(\d+x\d+)", key))]
    assert sizes, "the golden file holds no case"
    for size in sizes:
        estimator = estimator_with_published_weights(golden, int(arrays["weight_seed"]))
        similarity = torch.from_numpy(arrays[f"x_{size}"]).requires_grad_()
        target = torch.from_numpy(arrays[f"target_{size}"])

        predicted = rearrange(estimator(rearrange(similarity, "b 1 t v -> b t v")), "b t v -> b 1 t v")
        loss = (predicted - target).square().mean()
        loss.backward()

        torch.testing.assert_close(predicted, torch.from_numpy(arrays[f"y_{size}"]), rtol=1e-4, atol=2e-5)
        assert loss.item() == pytest.approx(float(arrays[f"mse_{size}"]), rel=1e-4)
        torch.testing.assert_close(similarity.grad, torch.from_numpy(arrays[f"grad_x_{size}"]), rtol=1e-4, atol=2e-5)
        for theirs, ours in PUBLISHED_NAMES.items():
            gradient = estimator.get_parameter(ours).grad
            assert gradient is not None
            expected = float(arrays[f"gradnorm_{size}::{theirs}"])
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-7), (size, theirs)
