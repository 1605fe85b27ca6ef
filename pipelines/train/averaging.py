"""The exponential moving average of the weights (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

After each step from the end of the warm-up on, average = decay · average + (1 - decay) · weights. Only trained weights
are averaged. Frozen weights equal their average, and ``torch.optim.swa_utils.AveragedModel`` would copy them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hbi_models.optimizer import warmup_steps
from hbi_models.optimizer_config import OptimizerConfig
from pipelines.workspace.errors import DamagedFileError


class WeightAverage:
    """The running mean of the trained parameters of ``model`` from step ``first_step`` on."""

    def __init__(self, model: nn.Module, *, decay: float, first_step: int) -> None:
        self.decay, self.first_step = decay, first_step
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._names, self._parameters = list(named), list(named.values())
        self._averages: list[Tensor] = []

    @classmethod
    def of(cls, model: nn.Module, config: OptimizerConfig, total_steps: int) -> WeightAverage | None:
        """The average, if ``config`` asks for one."""
        if config.ema_decay is None:
            return None
        return cls(model, decay=config.ema_decay, first_step=warmup_steps(total_steps, config.warmup_fraction))

    @property
    def started(self) -> bool:
        """Whether there is an average yet."""
        return bool(self._averages)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after ``step`` steps to the average."""
        if step < self.first_step:
            return
        if not self.started:
            # It starts from the weights and not from 0, so no bias has to be corrected.
            self._averages = [parameter.detach().clone() for parameter in self._parameters]
            return
        torch._foreach_lerp_(self._averages, [parameter.detach() for parameter in self._parameters], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters of the model hold their average, if there is one yet."""
        if not self.started:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # The storages are swapped, so nothing is copied or rounded.
        for number, parameter in enumerate(self._parameters):
            parameter.data, self._averages[number] = self._averages[number], parameter.data

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters."""
        return dict(zip(self._names, self._averages, strict=True))

    def restore(self, state: Mapping[str, Tensor] | None) -> None:
        """Loads the averages of a checkpoint; None = the checkpoint was made before there was an average.

        Raises:
            DamagedFileError: they are not those of this model.
        """
        if state is None:
            return
        shapes = [parameter.shape for parameter in self._parameters]
        if list(state) != self._names or [value.shape for value in state.values()] != shapes:
            raise DamagedFileError("the averaged weights of the checkpoint are not those of this model")
        self._averages = [
            value.to(parameter.device, copy=True)
            for value, parameter in zip(state.values(), self._parameters, strict=True)
        ]
