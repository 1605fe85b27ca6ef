"""Parameter groups, learning-rate schedules and optimizers.

Two optimizers behind one interface: PyTorch's AdamW with a warm-up and cosine schedule, and the
published BertAdam with its own. Both take their learning rate from a scheduler that the training
loop steps once per optimizer step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hbi_models.config_fields import require
from hbi_models.optimizer_config import OptimizerConfig

CLIP_MODULE = "clip"

LAYERS_BELOW_BLOCKS = frozenset(
    {
        # open_clip's transformers of both sides, then timm's image towers.
        *("token_embedding", "positional_embedding", "class_embedding", "conv1", "ln_pre"),
        *("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "stem"),
    }
)
"""Names of the layers of CLIP's towers that lie between the input and the blocks."""

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks|stages)\.(\d+)\.")

LARGEST_LOGIT_SCALE = math.log(100.0)
"""CLIP's bound on the log of its inverse temperature (Radford et al., 2021, section 2.5)."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: CLIP or not, decayed or not; empty groups are left out.

    With ``config.clip_layer_decay`` below 1 CLIP's are split by their depth.

    Parameters of a module called ``clip``, wherever it is, get ``config.lr * config.clip_lr_factor``.
    Parameters with ``bias`` in their name are not decayed; everything else is, the gains of layer
    norms and the logit scale included (published). Frozen parameters are in no group.

    Raises:
        ValueError: no parameter requires a gradient, or CLIP's towers have no blocks to tell depths by.
    """
    named = dict(named_parameters)
    below_top = _layers_below_top(named) if config.clip_layer_decay < 1 else {}
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        is_clip, decays, depth = _is_clip(name), "bias" not in name, below_top.get(name, 0)
        rate = config.lr * config.clip_lr_factor * config.clip_layer_decay**depth if is_clip else config.lr
        group = groups.setdefault(
            (not is_clip, depth, not decays),
            {
                "name": f"{'clip' if is_clip else 'head'}_{'decay' if decays else 'no_decay'}"
                + (f"_{depth}_below_top" if depth else ""),
                "params": [],
                "lr": rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    require(bool(groups), "the model has no parameter that requires a gradient; there is nothing to optimise")
    return [groups[key] for key in sorted(groups)]


def _is_clip(name: str) -> bool:
    return CLIP_MODULE in name.split(".")


def _layers_below_top(names: Iterable[str]) -> dict[str, int]:
    """How far below the top of its tower each of CLIP's parameters lies: 0 above the blocks, 1 the last block."""
    places: dict[str, tuple[str, int | None]] = {}
    for name in filter(_is_clip, names):
        path = name.split(f"{CLIP_MODULE}.", 1)[1]
        tower = "image" if path.startswith("visual.") else "text"
        # The outermost counts: of a ConvNeXt the stages, and not the blocks in them.
        block = _BLOCK.search(path)
        if block is not None:
            places[name] = tower, int(block[1])
        elif any(part in LAYERS_BELOW_BLOCKS for part in path.split(".")):
            # One below the first block.
            places[name] = tower, -1
        else:
            places[name] = tower, None
    sizes = {
        tower: 1 + max((block for other, block in places.values() if other == tower and block is not None), default=-1)
        for tower in ("image", "text")
    }
    require(
        not places or all(sizes.values()),
        "optimizer.clip_layer_decay is below 1, but a tower of this CLIP has no numbered blocks; set it to 1",
    )
    return {name: 0 if block is None else sizes[tower] - block for name, (tower, block) in places.items()}


def make_optimizer(model: nn.Module, config: OptimizerConfig, total_steps: int) -> tuple[Optimizer, LambdaLR]:
    """Returns the optimizer of a model that is on its device, and the schedule over ``total_steps`` steps.

    Call ``scheduler.step()`` after every ``optimizer.step()``. Both have state dicts of plain values
    and tensors, which resume exactly.

    Raises:
        ValueError: ``total_steps`` is not positive, or the model has nothing to optimise.
    """
    require(total_steps >= 1, f"total_steps is {total_steps}; a schedule needs 1 or more")
    groups = parameter_groups(model.named_parameters(), config)
    if config.name == "bert_adam":
        optimizer: Optimizer = BertAdam(groups, betas=config.betas, eps=config.eps, max_grad_norm=config.max_grad_norm)
        return optimizer, LambdaLR(optimizer, published_schedule(total_steps, config.warmup_fraction))
    # Fused, that is one kernel for all parameters, on the devices for which PyTorch is sure to have it.
    fused = all(parameter.device.type in ("cuda", "cpu") for group in groups for parameter in group["params"])
    optimizer = AdamW(groups, betas=config.betas, eps=config.eps, fused=fused)
    return optimizer, LambdaLR(optimizer, warmup_cosine_schedule(total_steps, config.warmup_fraction))


def leave_out_if(optimizer: Optimizer, is_bad: Bool[Tensor, ""]) -> None:
    """Makes the next step of the optimizer change no parameter where ``is_bad``, which is decided on its device.

    Fused optimizers of PyTorch and ``BertAdam`` can do that, by what they offer to a scaler of gradients; others take
    the step.
    """
    if isinstance(optimizer, BertAdam) or optimizer.defaults.get("fused"):
        optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]


def warmup_steps(total_steps: int, warmup_fraction: float) -> int:
    """Returns the number of steps over which the rate rises."""
    return round(warmup_fraction * total_steps)


def warmup_cosine_schedule(total_steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Returns the factor of the learning rate at step 0, 1, ...: a linear rise, then half a cosine to 0.

    The first step already moves, the peak is reached at the end of the warm-up, and from
    ``total_steps`` on the factor is 0.
    """
    rising = warmup_steps(total_steps, warmup_fraction)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = (step - rising) / max(1, total_steps - rising)
        return (1 + math.cos(math.pi * min(1.0, progress))) / 2

    return factor


def published_schedule(total_steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Returns the published factor of the learning rate at step 0, 1, ....

    The first step has rate 0. The cosine runs over all steps, not over those after the warm-up:
    the factor jumps down at the end of the warm-up (1.0 to 0.976 for a tenth), and it rises again
    beyond ``total_steps``.
    """

    def factor(step: int) -> float:
        progress = step / total_steps
        return progress / warmup_fraction if progress < warmup_fraction else (1 + math.cos(math.pi * progress)) / 2

    return factor


class BertAdam(Optimizer):
    """The published optimizer: Adam without bias correction, clipping each parameter's gradient.

    With g the gradient of one parameter, scaled by min(1, max_grad_norm / (‖g‖ + 1e-6)),

        m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) g^2,    p = p - lr (m / (sqrt(v) + eps) + wd p).

    The decay is decoupled (Loshchilov and Hutter, 2019). Gradients are not modified. A step for which ``found_inf`` is
    set, a number other than 0 on the parameters' device, changes no parameter.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        require(lr >= 0, f"lr is {lr}; it must not be negative")
        require(all(0 <= beta < 1 for beta in betas), f"betas are {betas}; both must lie in [0, 1)")
        require(max_grad_norm > 0, f"max_grad_norm is {max_grad_norm}; it must be positive")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; returns the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        first = [self.state[parameter]["exp_avg"] for parameter in parameters]
        second = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        beta1, beta2 = group["betas"]

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.found_inf is not None:
            # NaN times 0 would be NaN and stay in the moments.
            gradients = [torch.where(self.found_inf == 0, gradient, 0) for gradient in gradients]
        # The factors stay tensors: reading them would wait for the device at every step.
        factors = torch._foreach_norm(gradients)
        torch._foreach_add_(factors, 1e-6)
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, group["max_grad_norm"])
        torch._foreach_clamp_max_(factors, 1.0)
        clipped = torch._foreach_mul(gradients, factors)

        torch._foreach_lerp_(first, clipped, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, clipped, clipped, 1 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if self.found_inf is not None:
            # The moments and the decay move parameters without a gradient, too.
            torch._foreach_mul_(updates, (self.found_inf == 0).float())
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


@torch.no_grad()
def clamp_logit_scale_(logit_scale: nn.Parameter) -> None:
    """Bounds CLIP's log inverse temperature by ln 100 in place; call it after every step (published)."""
    logit_scale.clamp_(max=LARGEST_LOGIT_SCALE)
