"""Parameter groups, schedules, and the published optimizer against a spelled-out update."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from hbi_models.optimizer import (
    BertAdam,
    clamp_logit_scale_,
    leave_out_if,
    make_optimizer,
    parameter_groups,
    published_schedule,
    warmup_cosine_schedule,
)
from hbi_models.optimizer_config import OptimizerConfig


class SmallModel(nn.Module):
    """Something under ``clip`` and something that is not, one parameter frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.clip = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def train_step(self, optimizer: torch.optim.Optimizer, scheduler: Any, step: int) -> None:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        self.head(self.clip(inputs)).square().sum().backward()
        optimizer.step()
        scheduler.step()


def test_groups_separate_clip_from_heads_and_biases_from_weights() -> None:
    model = SmallModel()
    config = OptimizerConfig(lr=1e-2, clip_lr_factor=0.1, weight_decay=0.3)
    groups = {group["name"]: group for group in parameter_groups(model.named_parameters(), config)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "clip_decay": (1e-3, 0.3),
        "clip_no_decay": (1e-3, 0.0),
        "head_decay": (1e-2, 0.3),
        "head_no_decay": (1e-2, 0.0),
    }
    linear, norm = model.clip
    assert [id(p) for p in groups["clip_decay"]["params"]] == [id(linear.weight), id(norm.weight)]
    assert [id(p) for p in groups["head_no_decay"]["params"]] == [id(model.head.bias)]
    assert not any(parameter is model.frozen for group in groups.values() for parameter in group["params"])


def test_clip_is_found_inside_of_other_modules_and_by_its_whole_name() -> None:
    names = ["clip.proj", "encoder.clip.visual.conv1.bias", "encoder.temporalclip.weight", "clipped.weight"]
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in names}
    groups = parameter_groups(parameters.items(), OptimizerConfig())
    members = {group["name"]: [id(parameter) for parameter in group["params"]] for group in groups}
    assert members == {
        "clip_decay": [id(parameters[names[0]])],
        "clip_no_decay": [id(parameters[names[1]])],
        "head_decay": [id(parameters[name]) for name in names[2:]],
    }


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to optimise"):
        make_optimizer(SmallModel().requires_grad_(False), OptimizerConfig(), total_steps=10)


def test_published_update_without_foreach_operations() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 3), (5,), ()]]
    expected = [parameter.detach().clone() for parameter in parameters]
    moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in expected]
    optimizer = BertAdam(parameters, lr=0.1, weight_decay=0.2)
    for _ in range(4):
        for index, parameter in enumerate(parameters):
            # Norms on both sides of the clipping bound.
            gradient = torch.randn(parameter.shape, generator=generator) * (0.1 if index == 1 else 3.0)
            parameter.grad = gradient.clone()
            clipped = gradient * min(1.0, 1 / (gradient.norm().item() + 1e-6))
            first, second = moments[index]
            first.mul_(0.9).add_(0.1 * clipped)
            second.mul_(0.98).add_(0.02 * clipped.square())
            expected[index] -= 0.1 * (first / (second.sqrt() + 1e-6) + 0.2 * expected[index])
        gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        optimizer.step()
        assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, gradients, strict=True))
        for parameter, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)


def test_parameters_without_a_gradient_stay_where_they_are() -> None:
    moving, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = BertAdam([moving, still], lr=0.1, weight_decay=0.5)
    moving.grad = torch.ones(2)
    optimizer.step()
    assert (moving < 1).all()
    assert torch.equal(still.detach(), torch.ones(2))


@pytest.mark.parametrize("name", ["adamw", "bert_adam"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str) -> None:
    config = OptimizerConfig(name=name, lr=1e-2, clip_lr_factor=0.5)
    model = SmallModel()
    optimizer, scheduler = make_optimizer(model, config, total_steps=8)
    for step in range(4):
        model.train_step(optimizer, scheduler, step)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], buffer)
    for step in range(4, 8):
        model.train_step(optimizer, scheduler, step)

    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    resumed = SmallModel()
    resumed_optimizer, resumed_scheduler = make_optimizer(resumed, config, total_steps=8)
    for part, state in zip((resumed, resumed_optimizer, resumed_scheduler), states, strict=True):
        part.load_state_dict(state)
    for step in range(4, 8):
        resumed.train_step(resumed_optimizer, resumed_scheduler, step)

    assert resumed_scheduler.get_last_lr() == scheduler.get_last_lr()
    for parameter, expected in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_adamw_equals_its_formula_for_one_parameter() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, warmup_fraction=0.0, betas=(0.9, 0.98), eps=1e-6)
    optimizer, _ = make_optimizer(model, config, total_steps=10)
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # With bias correction the first step is lr in the direction of the gradient, plus the decay.
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1, abs=1e-6)


def test_warmup_cosine_rises_to_one_without_a_jump_and_ends_at_zero() -> None:
    factor = warmup_cosine_schedule(total_steps=100, warmup_fraction=0.1)
    factors = [factor(step) for step in range(102)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(factors[10:])) < 0.02
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == factors[101] == 0.0


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_short_schedules_are_defined_and_move(total_steps: int) -> None:
    factor = warmup_cosine_schedule(total_steps, warmup_fraction=0.1)
    assert factor(0) == 1.0
    assert all(0 <= factor(step) <= 1 for step in range(total_steps + 2))


def test_published_schedule_starts_at_zero_jumps_and_rises_again() -> None:
    factor = published_schedule(total_steps=100, warmup_fraction=0.1)
    assert factor(0) == 0.0
    assert factor(9) == pytest.approx(0.9)
    assert factor(10) == pytest.approx((1 + math.cos(0.1 * math.pi)) / 2)
    assert factor(100) == pytest.approx(0.0)
    assert factor(200) == pytest.approx(1.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="total_steps is 0"):
        make_optimizer(SmallModel(), OptimizerConfig(), total_steps=0)


def test_logit_scale_is_bounded_in_place() -> None:
    scale = nn.Parameter(torch.tensor(5.0))
    clamp_logit_scale_(scale)
    assert scale.item() == pytest.approx(math.log(100))
    scale.data.fill_(-1.0)
    clamp_logit_scale_(scale)
    assert scale.item() == -1.0


@pytest.mark.parametrize("name", ["bert_adam", "fused"])
def test_a_step_with_a_bad_gradient_can_be_left_out_without_asking_for_it(name: str) -> None:
    def trained(*bad: bool) -> list[torch.Tensor]:
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer: torch.optim.Optimizer
        if name == "fused":
            optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        else:
            optimizer = BertAdam([parameter], lr=0.1, weight_decay=0.2)
        places = []
        for is_bad in bad:
            parameter.grad = torch.tensor([torch.nan if is_bad else 0.3, 0.2, -torch.inf if is_bad else 0.1])
            leave_out_if(optimizer, parameter.grad.isfinite().all().logical_not())
            optimizer.step()
            places.append(parameter.detach().clone())
        return places

    first, second, _ = trained(False, True, False)
    assert torch.equal(first, second)
    (alone,) = trained(False)
    assert torch.equal(alone, first)
    assert not torch.equal(alone, torch.tensor([1.0, -2.0, 3.0]))


def test_an_optimizer_that_cannot_leave_a_step_out_is_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    leave_out_if(optimizer, torch.tensor(True))
    assert not hasattr(optimizer, "found_inf")


def test_layers_of_both_towers_learn_the_slower_the_deeper_they_lie() -> None:
    names = {
        "clip.logit_scale": 0,
        "clip.visual.proj": 0,
        "clip.visual.trunk.blocks.1.attn.qkv.weight": 1,
        "clip.visual.trunk.blocks.0.norm1.bias": 2,
        "clip.visual.trunk.patch_embed.proj.weight": 3,
        "clip.text_projection": 0,
        "clip.transformer.resblocks.2.attn.parametrizations.in_proj_weight.0.up": 1,
        "clip.transformer.resblocks.0.ln_1.weight": 3,
        "clip.positional_embedding": 4,
        "temporal.transformer.resblocks.0.ln_1.weight": None,
    }
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in names}
    config = OptimizerConfig(lr=1.0, clip_lr_factor=0.5, clip_layer_decay=0.1)
    groups = parameter_groups(parameters.items(), config)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, depth in names.items():
        assert rates[id(parameters[name])] == pytest.approx(1.0 if depth is None else 0.5 * 0.1**depth), name
    assert len({group["name"] for group in groups}) == len(groups)
    without = parameter_groups(parameters.items(), OptimizerConfig(lr=1.0, clip_lr_factor=0.5))
    assert [group["name"] for group in without] == ["clip_decay", "clip_no_decay", "head_decay"]


def test_depths_need_numbered_blocks() -> None:
    parameters = {"clip.visual.layer1.conv.weight": nn.Parameter(torch.zeros(1))}
    with pytest.raises(ValueError, match="no numbered blocks"):
        parameter_groups(parameters.items(), OptimizerConfig(clip_layer_decay=0.9))
