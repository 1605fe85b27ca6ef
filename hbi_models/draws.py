"""Random numbers of a training step, by row of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hbi_models.transfer import sent


class BatchDraws:
    """The random numbers of dropout and the tie-break noise in a step, for some rows of its batch.

    Every number is drawn on the CPU for the whole batch, and only the rows at hand are kept. So the numbers of a row
    depend only on the seed and its place in the batch, and not on the device or the number of workers that share the
    batch. Noise and dropout have separate streams, so that neither changes the other.

    Args:
        seed: of the step.
        batch_size: rows of the whole batch.
        first: place in it of the first row at hand.
    """

    def __init__(self, seed: int, *, batch_size: int, first: int = 0) -> None:
        self._noise, self._dropout = (torch.Generator().manual_seed(seed) for _ in range(2))
        self._batch_size, self._first = batch_size, first

    def uniform(self, shape: Sequence[int]) -> Float[Tensor, "rows ..."]:
        """Returns noise between 0 and 1 for rows of this ``shape``, on the CPU."""
        return self._rows(torch.rand((self._batch_size, *shape[1:]), generator=self._noise), shape[0])

    def dropout(self, values: Float[Tensor, "rows ..."], probability: float) -> Float[Tensor, "rows ..."]:
        """Returns the values, each set to 0 with this probability and otherwise divided by 1 minus it."""
        # In float32, so that the numbers are the same under autocast.
        kept = torch.empty(self._batch_size, *values.shape[1:])
        kept.bernoulli_(1 - probability, generator=self._dropout).div_(1 - probability)
        return values * sent(self._rows(kept, len(values)), values.device).to(values.dtype)

    def _rows(self, drawn: Tensor, count: int) -> Tensor:
        if self._first + count > self._batch_size:
            raise ValueError(
                f"numbers are needed for rows {self._first} to {self._first + count}, but the batch is said to have "
                f"{self._batch_size} rows; give the size of the whole batch"
            )
        return drawn[self._first : self._first + count]
