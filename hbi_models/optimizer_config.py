"""Frozen settings of the optimizer; "published" as in :mod:`hbi_models.configs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import added_later, require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, its learning rates and its schedule."""

    name: Literal["adamw", "bert_adam"] = "adamw"
    """``bert_adam`` is the published optimizer (no bias correction, clipping per parameter, a
    jump of the rate at the end of the warm-up); ``adamw`` is PyTorch's with a warm-up and
    cosine schedule without the jump."""

    lr: float = 1e-4
    """Peak learning rate of everything but CLIP (published: 1e-4)."""

    clip_lr_factor: float = 1e-3
    """CLIP's learning rate as a multiple of ``lr`` (published ``coef_lr``: 1e-3)."""

    clip_layer_decay: float = added_later(default=1.0)
    """Factor of the learning rate from each block of CLIP's towers to the one below it (Clark et al., 2020; Bao et
    al., 2022): the layers above the blocks have CLIP's rate, the last block that times this factor, and so on
    down to the embeddings. 1 = one rate for all (published)."""

    weight_decay: float = 0.2
    """Decay of weights; biases are exempt (published: 0.2)."""

    warmup_fraction: float = 0.1
    """Fraction of all steps over which the rate rises from 0 (published: 0.1)."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments (published: .9, .98)."""

    eps: float = 1e-6
    """Added to the root of the second moment (published: 1e-6)."""

    ema_decay: float | None = added_later(default=None)
    """Decay, per step, of the exponential moving average of the weights, which starts after the warm-up. Validation
    and the checkpoints that are kept then have the average. Null = none (published). 0.999 averages over about the
    last 1,000 steps; the training should have more steps than that."""

    max_grad_norm: float = 1.0
    """Norm to which the whole gradient is clipped (published: 1)."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr is {self.lr}; it must be positive")
        require(self.clip_lr_factor >= 0, f"optimizer.clip_lr_factor is {self.clip_lr_factor}; it must not be negative")
        require(
            0 < self.clip_layer_decay <= 1,
            f"optimizer.clip_layer_decay is {self.clip_layer_decay}; it must lie in (0, 1]",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optimizer.ema_decay is {self.ema_decay}; it must lie between 0 and 1",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction is {self.warmup_fraction}; it must lie in [0, 1)",
        )
