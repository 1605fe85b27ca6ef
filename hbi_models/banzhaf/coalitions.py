"""What the game is worth on average over random coalitions: expected weights and expected maxima.

Every word and every frame joins with probability p, independently. Given that both sides are present, the mean worth of
a coalition is::

    S_p = 1/2 sum_t A_t M(s_t.)  +  1/2 sum_v B_v M(s_.v)

with the expected softmax weights A and B (``expected_weights``) and the expected maxima M
(``expected_maxima``) of what joins. At p = 1 this is the similarity itself. Up to the division by the
probability that both sides are there it is the multilinear extension of the game (Owen, 1972);
docs/closed_form.md derives the formulas, ``game.py`` enumerates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hbi_models.banzhaf.exact import bounded_log_weights, falling_order, quadrature
from hbi_models.config_fields import require
from hbi_models.transfer import is_at_hand

LEFT_OUT = 1e-4
"""Probability that the maximum lies beyond the places that are considered."""


def expected_weights(
    logits: Float[Tensor, "items tokens"], mask: Bool[Tensor, "items tokens"], presence: float
) -> Float[Tensor, "items tokens"]:
    """Returns the expected softmax weight of every token among those that join, given that any does; 0 at padding.

    The weights of an item sum to 1, or to 0 without a real token. The weight of an absent token is 0. With q = 1 - p,
    e_t = exp(logit), psi_t = exp(-u e_t), phi_t = q + p psi_t and n real tokens they are proportional to the expected
    weight of t given that it joins,

        q^(n - 1) + sum_{s != t} integral over u > 0 of p e_s psi_s (1 - psi_t) prod_{r != s, t} phi_r du,

    which is 1 minus the expected weight of the others beside it. An item with a logit that is not finite gets NaN.
    Differentiable in ``logits``.

    Raises:
        ValueError: ``presence`` does not lie in (0, 1].
    """
    check_presence(presence)
    finite = (logits.isfinite() | ~mask).all(dim=1, keepdim=True)
    # On the CPU a logit that is not finite is an error further below, and one item must not stop the others.
    usable = logits.where(finite, 0.0)
    if presence == 1:
        weights = usable.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=-1)
    else:
        weights = _weights_given_joining(usable, mask, presence)
    weights = weights.masked_fill(~mask, 0)
    total = weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (weights / total).where(finite, torch.nan)


def _weights_given_joining(
    logits: Float[Tensor, "items tokens"], mask: Bool[Tensor, "items tokens"], presence: float
) -> Float[Tensor, "items tokens"]:
    log_weights, spread = bounded_log_weights(logits, mask, 1 - presence)
    nodes, node_weights = quadrature(spread, logits)
    # u e_t; beyond the bound psi is 0, and the product of the two must not become infinity times 0.
    decay = torch.exp((log_weights[:, :, None] + nodes).clamp(max=math.log(800.0)))
    present = torch.exp(-decay)
    expected = (1 - presence) + presence * present
    # In logarithms: the product of many small numbers has no gradient where it underflows.
    product = expected.log().sum(dim=1, keepdim=True).exp()
    # Not by the token's own integral: only these integrands fall like u^2 on the left, as the nodes need it.
    kept = presence * decay * present / expected
    others = kept.sum(dim=1, keepdim=True) - kept
    gained = (others * (-torch.expm1(-decay) / expected) * product) @ node_weights
    # The probability that no other token joins, in which case this one has all the weight.
    alone = (1 - presence) ** (mask.sum(dim=-1, keepdim=True).to(logits.dtype) - 1)
    return alone + gained


def place_weights(
    mask: Bool[Tensor, "items tokens"], presence: float, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "items places"]:
    """Returns the probabilities that the best token that joins is the best, second best, ... of an item's real tokens.

    Given that any joins: p q^(k - 1) / (1 - q^n) at place k, and 0 beyond n. Only the first places that hold 1 -
    ``LEFT_OUT`` of the probability are returned, normalised to sum to 1: 14 for p = 1/2, however many tokens there are.

    Raises:
        ValueError: ``presence`` does not lie in (0, 1].
    """
    check_presence(presence)
    places = min(mask.shape[1], most_places(presence))
    place = torch.arange(places, device=mask.device)
    weights = torch.pow(torch.full_like(place, 1 - presence, dtype=dtype), place)
    weights = weights * (place < mask.sum(dim=1, keepdim=True))
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def most_places(presence: float) -> int:
    """Returns how many places hold 1 - ``LEFT_OUT`` of the probability, however many tokens there are."""
    # The places beyond the k-th hold q^k of the probability.
    return 1 if presence == 1 else math.ceil(math.log(LEFT_OUT) / math.log1p(-presence))


def expected_maxima(
    values: Float[Tensor, "*rows tokens"], weights: Float[Tensor, "... places"]
) -> Float[Tensor, "*rows"]:
    """Returns the sum of the largest values of each row, weighted by their place, the largest first.

    ``weights`` are those of ``place_weights``, in a shape that broadcasts over the rows. Padding must have values
    below all others, which get weight 0. The error of what ``place_weights`` leaves out is at most ``LEFT_OUT``
    times the difference of the largest and the smallest value: 2e-4 for cosines. The gradient keeps the places of
    the largest values, a byte each, and not the values.
    """
    if values.requires_grad:
        result: Tensor = _ExpectedMaxima.apply(values, weights)  # type: ignore[no-untyped-call]
        return result
    return (_largest(values, weights.shape[-1]) * weights).sum(dim=-1)


class _ExpectedMaxima(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor) -> Tensor:
        places = falling_order(values)[..., : weights.shape[-1]]
        ctx.tokens = values.shape[-1]
        ctx.save_for_backward(places.to(torch.uint8 if ctx.tokens <= 256 else torch.int32), weights)
        return (values.gather(-1, places) * weights).sum(dim=-1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        places, weights = ctx.saved_tensors
        spread = gradients[0][..., None] * weights
        zeros = spread.new_zeros((*places.shape[:-1], ctx.tokens))
        # The weights of the places follow from masks, so they have no gradient.
        return zeros.scatter_(-1, places.long(), spread.expand(places.shape)), None


def _largest(values: Float[Tensor, "*rows tokens"], count: int) -> Float[Tensor, "*rows places"]:
    """Returns the ``count`` largest values of every row, the largest first."""
    if not is_at_hand(values):
        return values.sort(dim=-1, descending=True).values[..., :count]
    # NumPy sorts many short rows with vector instructions.
    rising = torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return rising[..., values.shape[-1] - count :].flip(-1)


def check_presence(presence: float) -> None:
    """Raises ``ValueError`` unless ``presence`` is a probability above 0."""
    require(0 < presence <= 1, f"the probability with which words and frames join is {presence}; it must lie in (0, 1]")
