"""A training whose loss or gradient is no number in one step."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hbi_models.optimizer_config import OptimizerConfig
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import rank
from pipelines.train.files import SCORE


@dataclass
class SteepTask:
    """A line whose gradient is no number in one step, although its loss is one; on one rank its loss is none."""

    steep_at: int | None = None
    nan_on_rank: int | None = None
    kind: str = "steep"
    seed: int = 0
    epochs: int = 1
    model_config: Any = field(default_factory=dict)
    optimizer_config: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.05))

    def make_model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def steps(self, epoch: int) -> int:
        return 4

    def batches(self, position: Position, device: torch.device) -> Generator[int, None, None]:
        yield from range(position.step, 4)

    def loss(self, model: nn.Module, batch: int, device: torch.device, *, watch: bool = False) -> Mapping[str, Tensor]:
        output = model(torch.ones(1, 2)).sum()
        if batch == self.steep_at:
            # The root of zero is zero and its slope infinite; times zero, that is no number.
            return {"loss": output + (output - output.detach()).sqrt()}
        if batch == 2 and rank() == self.nan_on_rank:
            return {"loss": output * math.nan}
        return {"loss": output.square()}

    def after_step(self, model: nn.Module) -> None: ...

    def row_names(self, batch: int) -> list[str]:
        return [f"batch {batch} of rank {rank()}"]

    def pairs(self, batch: int) -> int:
        return 1

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {SCORE: 0.0}
