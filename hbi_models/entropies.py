"""How far a softmax is from uniform: its entropy divided by the largest possible one.

1 is uniform, 0 is one-hot. It shows whether importance weights have collapsed, and how sharp a target of the
interaction loss is.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TARGET_ENTROPY = 0.5
"""The entropy to which ``entropy_scale`` brings targets: halfway between uniform, which teaches nothing, and
one-hot."""

# Logarithms of the bounds of the scale, of targets whose mean square is 1, and halvings between them: to 0.02%.
_LOWEST, _HIGHEST, _HALVINGS = math.log(1e-2), math.log(1e4), 16


def normalized_entropy(logits: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], *, dim: int) -> Float[Tensor, ""]:
    """Returns the mean over rows of the normalised entropy of their softmax over ``dim``.

    Padding and rows of fewer than two tokens are left out; if no row is left, the result is 1.
    """
    return _mean(*_entropies(logits, mask, dim))


@torch.no_grad()
def entropy_scale(
    target: Float[Tensor, "pairs words frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
    *,
    entropy: float = TARGET_ENTROPY,
) -> Float[Tensor, ""]:
    """Returns what to multiply targets by, so that their mean normalised entropy is ``entropy``.

    The mean is over the softmaxes of the interaction loss: over the frames for every word, and over the words for
    every frame. It falls with the scale, which is found by bisection, on the device and without reading from it.
    Multiplying ``target`` by a number divides the result by it. Targets that are all equal have no such scale;
    the result is then large and finite. No gradient.
    """
    cells = word_mask[:, :, None] & frame_mask[:, None, :]
    target = target.masked_fill(~cells, 0)
    size = (target.square().sum() / cells.sum().clamp(min=1)).sqrt().clamp(min=1e-12)
    low, high = target.new_full((), _LOWEST), target.new_full((), _HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        scaled = target * (middle.exp() / size)
        over_frames, over_words = (_entropies(scaled, cells, dim) for dim in (2, 1))
        flat = _mean(over_frames[0] + over_words[0], over_frames[1] + over_words[1]) > entropy
        low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
    return ((low + high) / 2).exp() / size


def _entropies(
    logits: Float[Tensor, "*axes"], mask: Bool[Tensor, "*axes"], dim: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the sum of the normalised entropies of rows of two and more, and how many there are."""
    shares = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(dim=dim)
    entropy = -(shares.exp() * shares).masked_fill(~mask, 0).sum(dim=dim)
    count = mask.sum(dim=dim)
    counted = count >= 2
    parts = entropy / count.clamp(min=2).to(entropy.dtype).log()
    return parts.masked_fill(~counted, 0).sum(), counted.sum().to(entropy.dtype)


def _mean(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))
