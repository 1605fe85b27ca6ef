"""The average of the weights against the spelled-out recursion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hbi_models.optimizer_config import OptimizerConfig
from pipelines.train.averaging import WeightAverage
from pipelines.workspace.errors import DamagedFileError


def small_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    return model


def test_the_average_starts_after_the_warm_up_and_follows_the_recursion() -> None:
    model, config = small_model(), OptimizerConfig(ema_decay=0.75, warmup_fraction=0.2)
    average = WeightAverage.of(model, config, total_steps=10)
    assert average is not None and average.first_step == 2
    expected: list[torch.Tensor] | None = None
    trained = [value for value in model.parameters() if value.requires_grad]
    for step in range(1, 6):
        with torch.no_grad():
            for value in trained:
                value += torch.randn(value.shape)
        average.update(step)
        if step < 2:
            assert not average.started
        elif expected is None:
            expected = [value.detach().clone() for value in trained]
        else:
            expected = [0.75 * old + 0.25 * new.detach() for old, new in zip(expected, trained, strict=True)]
    assert expected is not None
    assert list(average.state()) == ["0.weight", "1.weight", "1.bias"]
    torch.testing.assert_close(list(average.state().values()), expected)


def test_weights_come_back_to_the_bit_even_after_an_error() -> None:
    model = small_model()
    average = WeightAverage(model, decay=0.5, first_step=1)
    average.update(1)
    with torch.no_grad():
        model[0].weight += 1
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    means = {name: value.clone() for name, value in average.state().items()}
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert torch.equal(model[0].weight, means["0.weight"])
        assert not torch.equal(model[0].weight, weights["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, means[name]) for name, value in average.state().items())


def test_without_the_setting_there_is_none_and_anothers_state_is_refused() -> None:
    assert WeightAverage.of(small_model(), OptimizerConfig(), total_steps=10) is None
    average = WeightAverage(small_model(), decay=0.5, first_step=0)
    with pytest.raises(DamagedFileError, match="not those of this model"):
        average.restore({"0.weight": torch.zeros(1)})
    average.restore(None)
    assert not average.started
