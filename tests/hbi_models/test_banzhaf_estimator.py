"""The estimator network against a spelled-out forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from hbi_models.banzhaf import estimator as banzhaf_estimator
from hbi_models.banzhaf.estimator import InteractionEstimator


def test_equals_convolution_unscaled_attention_over_all_cells_and_convolution() -> None:
    torch.manual_seed(0)
    estimator = InteractionEstimator(channels=8).double()
    similarity = torch.randn(3, 5, 4, dtype=torch.float64)

    hidden = F.relu(F.conv2d(similarity[:, None], estimator.conv_in.weight, estimator.conv_in.bias, padding=1))
    cells = rearrange(hidden, "pairs channels words frames -> pairs (words frames) channels")
    queries, keys, values = (cells @ matrix for matrix in (estimator.query, estimator.key, estimator.value))
    attention = einsum(queries, keys, "pairs cells dim, pairs others dim -> pairs cells others").softmax(dim=-1)
    cells = cells + einsum(attention, values, "pairs cells others, pairs others dim -> pairs cells dim")
    grid = rearrange(cells, "pairs (words frames) channels -> pairs channels words frames", words=5)
    expected = F.conv2d(grid, estimator.conv_out.weight, estimator.conv_out.bias, padding=1)[:, 0]

    torch.testing.assert_close(estimator(similarity), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("absent", [1, 2, 7])
def test_words_that_are_padding_everywhere_may_be_left_out(absent: int) -> None:
    torch.manual_seed(0)
    estimator = InteractionEstimator(channels=8).double()
    similarity = torch.randn(3, 5, 4, dtype=torch.float64)
    weights = torch.randn(3, 5, 4, dtype=torch.float64)
    results = []
    for estimate in (estimator(F.pad(similarity, (0, 0, 0, absent)))[:, :5], estimator(similarity, absent)):
        gradients = torch.autograd.grad((estimate * weights).sum(), list(estimator.parameters()))
        results.append([estimate, *gradients])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(estimator(similarity, absent), estimator(similarity)), "padding takes part"


@pytest.mark.parametrize("absent", [0, 1, 3])
@pytest.mark.parametrize("lengths", [(5, 1, 0, 3, 5, 2, 4), (2, 2, 1), (5,)])
def test_pairs_of_similar_length_are_taken_together_and_give_the_same(
    lengths: tuple[int, ...], absent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banzhaf_estimator, "PAIRS_AT_ONCE_CPU", 2)
    torch.manual_seed(0)
    estimator = InteractionEstimator(channels=8).double()
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    similarity = torch.randn(len(lengths), 5, 4, dtype=torch.float64) * mask[:, :, None]
    weights = torch.randn(len(lengths), 5, 4, dtype=torch.float64) * mask[:, :, None]
    widths = []
    monkeypatch.setattr(estimator.conv_in, "forward", _noting_width(estimator.conv_in, widths))
    results = []
    for estimate in (estimator(similarity, absent), estimator(similarity, absent, mask)):
        gradients = torch.autograd.grad((estimate * weights).sum(), list(estimator.parameters()))
        results.append([estimate * mask[:, :, None], *gradients])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    padded = min(absent, 1)
    # One more word of padding, which is next to a real one.
    at_once = [max(sorted(lengths)[start : start + 2]) for start in range(0, len(lengths), 2)]
    assert widths == [5 + padded, *(min(max(longest, 1) + 1, 5 + padded) for longest in at_once)]


def test_of_no_pairs_there_is_nothing_to_estimate() -> None:
    estimator = InteractionEstimator(channels=4)
    none = torch.zeros(0, 5, 3)
    assert estimator(none).shape == estimator(none, 2, torch.ones(0, 5, dtype=torch.bool)).shape == (0, 5, 3)


def _noting_width(layer: torch.nn.Module, widths: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    forward = layer.forward

    def noted(grid: torch.Tensor) -> torch.Tensor:
        widths.append(grid.shape[2])
        found: torch.Tensor = forward(grid)
        return found

    return noted


def test_every_parameter_gets_a_gradient() -> None:
    estimator = InteractionEstimator(channels=4)
    estimator(torch.randn(2, 3, 3)).square().sum().backward()
    assert {name.split(".")[0] for name, _ in estimator.named_parameters()} == {
        "conv_in",
        "query",
        "key",
        "value",
        "conv_out",
    }
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in estimator.parameters())


def test_attention_matrices_start_within_the_published_xavier_bound() -> None:
    estimator = InteractionEstimator(channels=64)
    bound = 1.414 * (6 / 128) ** 0.5
    for matrix in (estimator.query, estimator.key, estimator.value):
        assert matrix.abs().max().item() <= bound
        assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="0 channels"):
        InteractionEstimator(channels=0)
