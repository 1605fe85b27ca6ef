"""The published interaction labels: expectation, single draws and estimator loss (case e)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.banzhaf.game import every_subset
from hbi_models.banzhaf.published import published_labels, sample_published_labels, value_of_draw
from tests.parity.conftest import Golden
from tests.parity.test_estimator import PUBLISHED_NAMES, estimator_with_published_weights

SCALE = 1000.0


def game(arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "similarity": torch.from_numpy(arrays["sim"]).to(dtype),
        "word_weights": torch.from_numpy(arrays["text_weight"]).to(dtype),
        "frame_weights": torch.from_numpy(arrays["video_weight"]).to(dtype),
        "word_mask": torch.from_numpy(arrays["text_mask"]).bool(),
        "frame_mask": torch.from_numpy(arrays["video_mask"]).bool(),
    }


@pytest.mark.parametrize("case", ["e_labels_exact", "e_labels_big"])
def test_expected_labels_equal_the_enumerated_ones(golden: Golden, case: str) -> None:
    arrays = golden.arrays(case)
    expected = torch.from_numpy(arrays["labels"])
    # Labels are of order 100; the data's own tolerances in double and in single precision.
    torch.testing.assert_close(published_labels(**game(arrays, torch.float64)), expected, rtol=1e-6, atol=1e-4)
    single = published_labels(**game(arrays, torch.float32)).double()
    torch.testing.assert_close(single, expected, rtol=1e-6, atol=5e-3)


@pytest.mark.slow
def test_every_single_draw_equals_the_published_one(golden: Golden) -> None:
    arrays = golden.arrays("e_labels_exact")
    parts = game(arrays, torch.float64)
    _, words, frames = parts["similarity"].shape
    word_sets, frame_sets = every_subset(words), every_subset(frames)
    present = parts["word_mask"][:, :, None] & parts["frame_mask"][:, None, :]
    for row, drawn_words in enumerate(word_sets):
        # All sets of frames of every pair are pairs of one batch.
        count = len(frame_sets)
        payoffs, word_weights, frame_weights, word_mask, frame_mask = (
            part.repeat_interleave(count, dim=0) for part in parts.values()
        )
        drawn_frames = torch.stack(list(frame_sets)).repeat(len(present), 1)
        expected = torch.from_numpy(arrays["interaction"][row]).transpose(0, 1)
        values = torch.zeros_like(expected)
        for word in range(words):
            for frame in range(frames):
                values[:, :, word, frame] = value_of_draw(
                    SCALE * payoffs,
                    word_weights,
                    frame_weights,
                    word_mask & drawn_words,
                    frame_mask & drawn_frames,
                    word=word,
                    frame=frame,
                ).reshape(len(present), count)
        there = present[:, None].expand_as(values)
        torch.testing.assert_close(values[there], expected[there], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_sampled_labels_lie_within_their_standard_error_of_the_expectation(golden: Golden) -> None:
    arrays = golden.arrays("e_labels_big")
    draws = 6
    generator = torch.Generator().manual_seed(1)
    sampled = sample_published_labels(**game(arrays, torch.float64), num_draws=draws, generator=generator)
    present = (arrays["text_mask"][:, :, None] * arrays["video_mask"][:, None, :]) == 1
    z = (sampled.numpy() - arrays["labels"])[present] / (arrays["sample_std"][present] / draws**0.5)
    # Standard normal scores, a few hundred of them: these bounds fail once in many thousand seeds.
    assert abs(z.mean()) < 4 / z.size**0.5
    assert 0.8 < z.std() < 1.2


def test_shared_subsets_approach_the_expectation(golden: Golden) -> None:
    arrays = golden.arrays("e_labels_big")
    expected = torch.from_numpy(arrays["labels"])
    generator = torch.Generator().manual_seed(1)
    approximate = published_labels(**game(arrays, torch.float64), most_subsets=256, generator=generator)
    # The whole published label (100 draws) has a standard error of a tenth of sample_std.
    error = (approximate - expected).abs().max().item()
    assert 0 < error < 0.1 * float(arrays["sample_std"].max())


def test_estimator_loss_on_the_labels_and_its_gradients_equal_the_published(golden: Golden) -> None:
    arrays = golden.arrays("e_labels_exact")
    parts = game(arrays, torch.float32)
    estimator: InteractionEstimator = estimator_with_published_weights(golden, int(arrays["weight_seed"]))
    present = parts["word_mask"][:, :, None] & parts["frame_mask"][:, None, :]
    predicted = estimator(parts["similarity"]) * present
    torch.testing.assert_close(predicted, torch.from_numpy(arrays["est_pred"]), rtol=1e-4, atol=2e-5)

    loss = (published_labels(**parts) - predicted).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["est_mse"]), rel=1e-4)
    for theirs, ours in PUBLISHED_NAMES.items():
        gradient = estimator.get_parameter(ours).grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(float(arrays[f"est_gradnorm::{theirs}"]), rel=1e-3), theirs
