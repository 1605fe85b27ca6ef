"""The published optimizer, its schedule and its parameter groups (case g)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hbi_models.optimizer import BertAdam, parameter_groups, published_schedule
from hbi_models.optimizer_config import OptimizerConfig
from tests.parity.conftest import Golden


def test_trajectory_and_learning_rates_equal_the_published(golden: Golden) -> None:
    arrays = golden.arrays("g_bertadam")
    parameters = [nn.Parameter(torch.from_numpy(arrays[f"p{index}_init"].copy())) for index in (0, 1)]
    groups = [
        {"params": [parameter], "lr": float(lr), "weight_decay": float(decay)}
        for parameter, lr, decay in zip(parameters, arrays["lr"], arrays["weight_decay"], strict=True)
    ]
    optimizer = BertAdam(groups)
    # Stored in single precision; as it stands it would move the end of the warm-up by one step.
    warmup_fraction = round(float(arrays["warmup"]), 6)
    scheduler = LambdaLR(optimizer, published_schedule(int(arrays["t_total"]), warmup_fraction))
    for step in range(len(arrays["g0"])):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(arrays[f"g{index}"][step].copy())
        optimizer.step()
        scheduler.step()
        for index, parameter in enumerate(parameters):
            # Single precision, accumulated over the steps.
            torch.testing.assert_close(
                parameter.detach(), torch.from_numpy(arrays[f"p{index}_traj"][step]), rtol=1e-5, atol=1e-6
            )
        assert scheduler.get_last_lr() == pytest.approx(arrays["next_lr"][step].tolist(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("case", ["retrieval", "vqa"])
def test_groups_of_published_names_equal_the_published_groups(golden: Golden, case: str) -> None:
    expected = golden.json(f"param_groups_{case}")
    parameters = {name: nn.Parameter(torch.zeros(1)) for group in expected for name in group["names"]}
    names = {id(parameter): name for name, parameter in parameters.items()}
    config = OptimizerConfig(lr=1e-4, clip_lr_factor=1e-3, weight_decay=0.2)

    groups = parameter_groups(parameters.items(), config)

    actual = sorted((g["lr"], g["weight_decay"], sorted(names[id(p)] for p in g["params"])) for g in groups)
    assert actual == sorted((g["lr"], g["weight_decay"], sorted(g["names"])) for g in expected)
