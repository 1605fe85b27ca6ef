"""Figures beside the loss that show whether single words or frames take all the importance, and a warning.

A model can lower an interaction loss without learning anything, by making the interaction easy to predict: it gives one
token all the importance. The figures are computed on the device, in steps that are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import PairFeatures, TokenLevel
from hbi_models.configs import LEVELS
from hbi_models.entropies import normalized_entropy
from hbi_models.similarity import token_weights
from pipelines.train.collectives import mean_over_ranks
from pipelines.train.history import Point

logger = logging.getLogger(__name__)

GAME = "game/"
"""Names of these figures begin so."""

COLLAPSED = 0.4
"""Normalised entropy of importance weights below which a level is said to have collapsed."""

_SIDES = ("words", "frames")


def game_figures(
    own: PairFeatures, pairs: PairFeatures, parts: Mapping[str, Tensor], *, skl: float
) -> dict[str, Float[Tensor, ""]]:
    """The figures of a batch by name, for each level.

    ``{level}_{words, frames}_entropy``: mean normalised entropy of the importance weights, 1 where all tokens count
    alike, 0 where one counts alone. ``{level}_{words, frames}_largest``: mean of the largest weight. Levels of a single
    token have neither. ``{level}_gradient``: length of the gradient of the weighted interaction loss on the tokens of
    the level, relative to that of the contrastive loss.

    Args:
        own: This rank's pairs, with the tokens from which the loss was computed (not detached).
        pairs: The pairs of all ranks.
        parts: Parts of the loss of ``pairs``, which can still be differentiated.
        skl: Weight of the interaction loss.
    """
    figures: dict[str, Tensor] = {}
    for number, level in enumerate(LEVELS):
        for side, tokens in zip(_SIDES, (pairs.texts[number], pairs.videos[number]), strict=True):
            if tokens.mask.shape[1] > 1:  # [pairs, tokens]
                figures |= {f"{GAME}{level}_{side}_{name}": value for name, value in _weights(tokens).items()}
        if f"{level}_interaction" in parts:
            leaves = [side.features for side in (own.texts[number], own.videos[number]) if side.features.requires_grad]
            if leaves:
                squares = torch.stack([_square(parts[f"{level}_{name}"], leaves) for name in ("interaction", "nce")])
                # Each rank holds the gradients of its own tokens. Only the ratio counts, so the mean does for the sum.
                taught, contrast = mean_over_ranks(squares).sqrt()
                figures[f"{GAME}{level}_gradient"] = skl * taught / contrast.clamp(min=torch.finfo(contrast.dtype).tiny)
    return figures


@torch.no_grad()
def _weights(tokens: TokenLevel) -> dict[str, Float[Tensor, ""]]:
    real = tokens.mask.any(dim=1)
    largest = token_weights(tokens).amax(dim=1)
    return {
        "entropy": normalized_entropy(tokens.logits, tokens.mask, dim=1),
        "largest": (largest * real).sum() / real.sum().clamp(min=1),
    }


def _square(loss: Float[Tensor, ""], leaves: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Returns the squared length of the gradient of ``loss`` on ``leaves``."""
    # The loop goes back through this graph once more. On several ranks this is a collective, by the gather's backward.
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum() if squares else torch.zeros((), device=loss.device)


class CollapseWarnings:
    """Warns once of each level and side whose importance weights have collapsed."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look(self, points: Sequence[Point]) -> None:
        """Looks at new points of a training's curves."""
        for step, metrics in points:
            for name, value in metrics.items():
                if name.startswith(GAME) and name.endswith("_entropy") and value < COLLAPSED and name not in self._told:
                    self._told.add(name)
                    # Names of levels hold no underscore.
                    level, side, _ = name.removeprefix(GAME).split("_")
                    logger.warning("%s", _advice(level, side, step, value, metrics.get(f"{GAME}{level}_gradient")))


def _advice(level: str, side: str, step: int, entropy: float, gradient: float | None) -> str:
    said = (
        f"importance weights of {side} at the level {level} have collapsed at step {step}: their normalised entropy is "
        f"{entropy:.2f} (1 = all count alike, 0 = one counts alone), below {COLLAPSED}"
    )
    if gradient is None:
        return f"{said}. There is no interaction loss that could be the cause; look at the learning rate and the data"
    return (
        f"{said}. The interaction loss pulls at the tokens {100 * gradient:.0f}% as hard as the contrastive one. If "
        "R@1 falls, set model.game.teacher to none, or model.game.similarity_scale to auto, or lower model.loss.skl; "
        "with CLIP from scratch none is the better choice (docs/game.md)"
    )
