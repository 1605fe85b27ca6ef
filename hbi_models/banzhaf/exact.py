"""The exact Banzhaf interaction of words and frames, in polynomial time.

The value of a coalition (``game.py``) is half a sum over its words of (softmax weight of the
word) x (best similarity among its frames), plus the same with the roles swapped. The words and
the frames of a random coalition are independent, so the interaction of word i and frame j is

    1/2 sum_t W[i, t] D[t, j]  +  the same with words and frames swapped,

where ``W[i, t]`` is how much the presence of word i changes the expected weight of word t, and
``D[t, j]`` how much frame j raises the expected best similarity of word t. ``D`` is a sort and a
triangular product (``maximum_gains``), ``W`` an integral over one variable (``weight_gains``).

The interaction index is Grabisch and Roubens (1999); that expectations over independent players
factor is the multilinear extension of Owen (1972).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hbi_models.transfer import is_at_hand

# A player whose logit lies this far below the next higher one has a softmax weight below
# exp(-40) = 4e-18 in that player's company, less than float64 resolves. Cutting wider gaps
# bounds the range of the integral, and with it the number of nodes, for any logits.
LARGEST_GAP = 40.0

# The same gap in float32, exp(-20) = 2e-9, and the probability of coalitions that may be neglected. The latter limits
# how many higher tokens can be absent together. Both bound the range of the integral before any logit is known.
_BOUNDS = {torch.float32: (20.0, 2.0**-26), torch.float64: (LARGEST_GAP, 2.0**-54)}


_NOT_FINITE = (
    "the importance logits of the Banzhaf game hold NaN or infinity at a real token; they must be finite. "
    "Look for a diverged model or for features of an empty video"
)


class NonFiniteLogitsError(ValueError):
    """An importance logit of a real token is NaN or infinite."""


def exact_interaction(
    similarity: Float[Tensor, "pairs words frames"],
    word_logits: Float[Tensor, "pairs words"],
    frame_logits: Float[Tensor, "pairs frames"],
    word_mask: Bool[Tensor, "pairs words"],
    frame_mask: Bool[Tensor, "pairs frames"],
) -> Float[Tensor, "pairs words frames"]:
    """Returns the Banzhaf interaction of every word and frame of every pair, 0 at padding.

    It has the units of ``similarity`` and scales with it; the logits matter up to a constant.
    Values at padding, whatever they are, have no effect. Differentiable in the three first
    arguments, except where two similarities tie. Computed in float64 if any of them is float64 and
    otherwise in float32, also inside autocast: the error is a small multiple of that type's
    rounding, relative to the largest similarity, for any spread of the logits.

    Raises:
        NonFiniteLogitsError: a logit of a real token is not finite. An accelerator is not asked: there the result of
            such a pair is NaN, which ``require_finite`` finds.
    """
    with torch.autocast(device_type=similarity.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(similarity.dtype, word_logits.dtype), frame_logits.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        similarity = similarity.to(dtype).masked_fill(~word_mask[:, :, None], 0).masked_fill(~frame_mask[:, None, :], 0)
        transposed = rearrange(similarity, "pairs words frames -> pairs frames words")
        through_words = weight_gains(word_logits.to(dtype), word_mask) @ maximum_gains(similarity, frame_mask)
        through_frames = weight_gains(frame_logits.to(dtype), frame_mask) @ maximum_gains(transposed, word_mask)
        return (through_words + rearrange(through_frames, "pairs frames words -> pairs words frames")) / 2


def require_finite(interaction: Float[Tensor, "..."]) -> None:
    """Checks labels that have come from an accelerator.

    Raises:
        NonFiniteLogitsError: a logit that they were computed from was not finite.
    """
    if not interaction.isfinite().all():
        raise NonFiniteLogitsError(_NOT_FINITE)


def maximum_gains(
    values: Float[Tensor, "pairs rows tokens"], mask: Bool[Tensor, "pairs tokens"]
) -> Float[Tensor, "pairs rows tokens"]:
    """Returns by how much each token raises the expected maximum of its row.

    The expectation is over all sets of the other real tokens, the maximum of the empty set is 0.
    With the values of a row in falling order x_0, x_1, ..., the token at position k matters when
    none before it is present, and then replaces the best of those behind it:

        D_k = 2^-k x_k - sum_{m > k} 2^-m x_m.

    ``values`` must be 0 at padding, where the result is 0 too.
    """
    num_tokens = values.shape[-1]
    # Padding comes last, where its zeros add nothing. Tied values get the same gain in either order.
    order = falling_order(values.detach().masked_fill(~mask[:, None, :], -torch.inf))
    identity = torch.eye(num_tokens, dtype=values.dtype, device=values.device)
    halvings = torch.exp2(-torch.arange(num_tokens, dtype=values.dtype, device=values.device))
    # The matrix holds 2^-k in its diagonal, and -2^-m in row m of column k below it.
    gains = values.gather(-1, order) @ (halvings[:, None] * (2 * identity - torch.ones_like(identity).tril()))
    return torch.zeros_like(values).scatter_(-1, order, gains)


def falling_order(keys: Float[Tensor, "*rows tokens"]) -> Int[Tensor, "*rows tokens"]:
    """Returns the places of the values along the last axis, the largest first."""
    if not is_at_hand(keys):
        return keys.argsort(dim=-1, descending=True)
    # Sorting many short rows is half of the whole computation. NumPy sorts with vector instructions, two to four times
    # faster than PyTorch with two threads.
    return torch.from_numpy(np.argsort(-keys.detach().numpy(), axis=-1))


def weight_gains(
    logits: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"]
) -> Float[Tensor, "pairs members tokens"]:
    """Returns ``W[i, t]``: by how much member i raises the expected softmax weight of token t.

    The expectation is over all sets C of the other real tokens; the weight of a token outside the
    set is 0. With e_t = exp(logit), psi_t = exp(-u e_t), phi_t = (1 + psi_t) / 2 and
    1 / x = integral over u > 0 of exp(-u x),

        -W[i, t] = 1/2 integral of e_t psi_t (1 - psi_i) prod_{r != i, t} phi_r du    for t != i,

    and W[i, i] follows because the weights sum to 1, or to 0 for the empty set: the row sums are
    2^(1 - n). All members and tokens share the nodes of the integration, which makes W one matrix
    product over them.
    """
    log_weights, spread = bounded_log_weights(logits, mask)
    nodes, node_weights = quadrature(spread, logits)
    # exp(x + log e_t) = u e_t. Beyond the bound psi is 0 in either precision and the product
    # u e_t psi_t must not become infinity times 0.
    # Beside a real token padding has decay 0: it leaves the product as it is and has no losses, so it needs no mask.
    decay = torch.exp((log_weights[:, :, None] + nodes).clamp(max=math.log(800.0)))
    # sigmoid(-y) = psi / (2 phi), thus 1 - 2 sigmoid(-y) = (1 - psi) / (2 phi) and 1 / phi = 2 (1 - sigmoid(-y)).
    half = torch.sigmoid(-decay)
    difference = 1 - 2 * half
    factors = 1 + difference
    if logits.shape[-1] < math.log2(torch.finfo(logits.dtype).max):
        product = 1 / factors.prod(dim=1, keepdim=True)
    else:
        # Factors up to 2 may exceed the type together. Their reciprocal is 0 then, and autograd would multiply infinity
        # by 0.
        beyond = factors.detach().prod(dim=1, keepdim=True).isinf()
        product = (1 / factors.masked_fill(beyond, 1).prod(dim=1, keepdim=True)).masked_fill(beyond, 0)
    losses = (difference * (2 * node_weights * product)) @ rearrange(
        decay * half, "pairs tokens nodes -> pairs nodes tokens"
    )
    row_sums = torch.exp2(1 - mask.sum(dim=-1, keepdim=True).to(logits.dtype))
    gains = -losses
    # Padding gets a diagonal element, too. It meets a row of zeros in the gains of the maxima.
    gains.diagonal(dim1=-2, dim2=-1).add_(losses.sum(dim=-1) + row_sums)
    return gains


def bounded_log_weights(
    logits: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"], absence: float = 0.5
) -> tuple[Float[Tensor, "pairs tokens"], float]:
    """Returns the log softmax over the real tokens, and a distance below 0 that none of them exceeds.

    ``absence`` is the probability with which a token is not in a coalition.
    """
    # The lowest finite number instead of -inf keeps the gradient finite where a row is all padding.
    padding = torch.finfo(logits.dtype).min
    if not is_at_hand(logits):
        return _log_weights_of_any_spread(logits, mask, absence)
    log_weights = logits.masked_fill(~mask, padding).log_softmax(dim=-1)
    spread = -float(log_weights.detach().masked_fill(~mask, 0).amin()) if log_weights.numel() else 0.0
    if not math.isfinite(spread):
        raise NonFiniteLogitsError(_NOT_FINITE)
    if spread > LARGEST_GAP:
        # In float64, because the difference of two large logits must not be rounded.
        narrowed = _narrow_gaps(logits.double().masked_fill(~mask, padding), LARGEST_GAP)
        # The gap down to the padding was cut like the others.
        log_weights = narrowed.masked_fill(~mask, padding).log_softmax(dim=-1).to(logits.dtype)
        spread = -float(log_weights.detach().masked_fill(~mask, 0).amin())
    return log_weights, spread


def _log_weights_of_any_spread(
    logits: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"], absence: float
) -> tuple[Float[Tensor, "pairs tokens"], float]:
    """Returns the same on an accelerator, with a bound that holds for any logits, so that the host waits for none.

    More nodes than most logits need cost little there. Where a logit is not finite, all weights of its pair are NaN.
    """
    largest_gap, rare = _BOUNDS[logits.dtype]
    tokens, padding = logits.shape[-1], torch.finfo(logits.dtype).min
    counted = math.ceil(math.log(rare) / math.log(absence))
    # A token below this has that many tokens far above it, which are absent together too rarely to count.
    lowest = -largest_gap * min(max(tokens - 1, 0), counted)
    narrowed = _narrow_gaps(logits.double().masked_fill(~mask, padding), largest_gap).clamp(min=lowest)
    log_weights = narrowed.masked_fill(~mask, padding).log_softmax(dim=-1).to(logits.dtype)
    is_finite = (logits.isfinite() | ~mask).all(dim=-1, keepdim=True)
    # The largest logit is 0, so that the logarithm of the sum of all exponentials is at most log(tokens).
    return log_weights.where(is_finite, torch.nan), math.log(max(tokens, 1)) - lowest


def _narrow_gaps(logits: Float[Tensor, "pairs tokens"], largest_gap: float) -> Float[Tensor, "pairs tokens"]:
    """Returns the logits with gaps between neighbours in rank cut to ``largest_gap``; the largest becomes 0."""
    ordered, order = logits.sort(dim=-1, descending=True)
    gaps = ordered.diff(dim=-1, prepend=ordered[:, :1]).clamp(min=-largest_gap)
    return torch.zeros_like(logits).scatter(-1, order, gaps.cumsum(dim=-1))


def quadrature(spread: float, like: Tensor) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Returns the nodes x = log u and their weights, for softmax weights of exp(-spread) and more.

    In x the integrand is entire and ends like exp(2 x) on the left and like exp(-exp(x - spread))
    on the right. With x = y - 2 exp(-y) it ends double-exponentially on both sides, and the
    trapezoidal rule in y converges exponentially in its step (Takahasi and Mori, 1974). Bounds
    and step leave an error of 1e-6 in single and 1e-12 in double precision: 14 nodes and 31 nodes
    for 24 equal weights, and 2 or 4 more per unit of spread.
    """
    start, end, step = (-1.75, 3.4, 0.28) if like.dtype == torch.float64 else (-0.75, 2.6, 0.52)
    count = math.ceil((spread + end - start) / step) + 1
    points = start + step * torch.arange(count, dtype=like.dtype, device=like.device)
    squeeze = 2 * torch.exp(-points)
    return points - squeeze, step * (1 + squeeze)
