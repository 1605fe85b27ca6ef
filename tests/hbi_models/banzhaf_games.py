"""Random games of words and frames for the tests of the Banzhaf interaction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Game(NamedTuple):
    """Arguments of ``exact_interaction`` and ``brute_force_interaction``, in their order."""

    similarity: Tensor
    word_logits: Tensor
    frame_logits: Tensor
    word_mask: Tensor
    frame_mask: Tensor

    def to(self, dtype: torch.dtype) -> Game:
        return Game(*(part.to(dtype) for part in self[:3]), *self[3:])

    @property
    def present(self) -> Tensor:
        return self.word_mask[:, :, None] & self.frame_mask[:, None, :]


def random_game(
    *, pairs: int = 4, words: int, frames: int, logit_scale: float = 1.0, padded: bool = False, seed: int = 0
) -> Game:
    """Normal similarities and logits in float64; ``padded`` pairs lose players from their ends, never the first."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def mask(tokens: int) -> Tensor:
        lengths = torch.randint(1, tokens + 1, (pairs, 1), generator=generator)
        return torch.arange(tokens) < (lengths if padded else tokens * torch.ones_like(lengths))

    return Game(
        normal(pairs, words, frames),
        logit_scale * normal(pairs, words),
        logit_scale * normal(pairs, frames),
        mask(words),
        mask(frames),
    )
