"""Losses and gradients that are no finite numbers: noticed without a wait in every step, and reported by all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbi_models.transfer import fetched
from pipelines.train.collectives import gather_objects, mean_over_ranks, rank
from pipelines.workspace.errors import examples

_NAMED_ROWS = 5
_LEAST_SCALE = 2.0**-14
"""If gradients are still not finite when their scale is below this, the range of float16 is not the reason."""


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite; no weight is changed by it, and nothing is saved after it.

    On a GPU it is noticed when the losses are next looked at: at the logging interval, and before anything is
    validated or saved. To look at each of them would make the host wait for the device in every step.

    ``report`` holds the ``step``, ``what`` was not finite and its ``value``. Its ``ranks`` are those with such a value,
    each with the ``parts`` of its loss and the ``rows`` of its batch. Once they are known, it also holds the
    ``last_checkpoint`` and the place where the report is ``saved``.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        rows = [name for part in self.report["ranks"] for name in part["rows"]]
        listed = examples(rows, limit=_NAMED_ROWS)
        saved = f" (all of them: {self.report['saved']})" if "saved" in self.report else ""
        good = (
            f"; the last good checkpoint is {self.report['last_checkpoint']}"
            if "last_checkpoint" in self.report
            else ""
        )
        return (
            f"the {self.report['what']} is {self.report['value']} at step {self.report['step']}, in a batch of "
            f"{listed}{saved}{good}. Lower the learning rate, or leave the offending rows out, and run the same "
            "command again"
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What nobody has looked at yet: the tensors are still on the device."""

    number: int
    norm: Tensor
    parts: Mapping[str, Tensor]
    rows: list[str]


class Watch:
    """The steps since they were last looked at; all ranks note and look equally often.

    Args:
        scaler: of the gradients; where it scales, a gradient that is not finite costs its step and no more.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler
        self._steps: list[_Step] = []

    def note(self, step: int, norm: Tensor, parts: Mapping[str, Tensor], rows: list[str]) -> None:
        """Remembers a step: the norm of its gradient, which all ranks share, the parts of its loss, and its batch."""
        self._steps.append(_Step(step, norm, parts, rows))

    def look(self) -> None:
        """Reads losses and norms of the steps since it was last called, in one transfer.

        Raises:
            NonFiniteLossError: one is NaN or infinite; on every rank the same.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        values = torch.stack([torch.stack([step.parts["loss"].float(), step.norm.float()]) for step in steps])
        # A mean is not finite where one rank's value is not, so all ranks raise, and gather their reports, together.
        (seen,) = fetched([mean_over_ranks(values)])
        overflowed = steps[-1]
        for step, (loss, norm) in zip(steps, seen.tolist(), strict=True):
            if not math.isfinite(loss):
                raise _report("loss", step.parts["loss"], step)
            if not math.isfinite(norm):
                if not self._scaler.is_enabled():
                    raise _report("gradient", step.norm, step)
                # The scale falls at such steps, and the steps after one may be finite again.
                overflowed = step
        if self._scaler.is_enabled() and self._scaler.get_scale() < _LEAST_SCALE:
            raise _report("gradient", overflowed.norm, overflowed)


def _report(what: str, value: Tensor, step: _Step) -> NonFiniteLossError:
    """What to raise; where some ranks' losses are finite, the others are reported."""
    mine = {
        "rank": rank(),
        "value": _as_json(value),
        "parts": {name: _as_json(part) for name, part in step.parts.items()},
        "rows": step.rows,
    }
    ranks = gather_objects(mine)
    # Words stand for what is not finite (``_as_json``). No rank has one where only the mean overflowed.
    offending = [part for part in ranks if isinstance(part["value"], str)] or ranks
    return NonFiniteLossError({"what": what, "step": step.number, "value": offending[0]["value"], "ranks": offending})


def _as_json(value: Tensor) -> float | str:
    """A number, or the word for one that JSON does not have."""
    number = float(value.detach())
    return number if math.isfinite(number) else str(number)
