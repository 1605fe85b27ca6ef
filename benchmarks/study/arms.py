"""What is compared: settings of the heads, and which differences are claims."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hbi_models.configs import GameConfig, LossConfig, RetrievalConfig


@dataclass(frozen=True)
class Arm:
    """One setting of the heads."""

    game: GameConfig
    loss: LossConfig = field(default_factory=LossConfig)
    kind: Literal["hierarchy", "entity", "mean"] = "hierarchy"
    """All levels; the entity level alone; or one token, the mean of an item's."""

    def settings(self, encoder: RetrievalConfig, frames: int, channels: int | None = None) -> RetrievalConfig:
        """Settings of a model with these heads above ``encoder``'s CLIP.

        Predictors have its number of ``channels`` by default.
        """
        game = replace(self.game, estimator_channels=channels or encoder.game.estimator_channels)
        rates = (1.0, 1.0, 1.0) if self.kind == "hierarchy" else (1.0, 0.0, 0.0)
        return replace(encoder, game=game, loss=self.loss, max_frames=frames, level_rates=rates)


_NONE = GameConfig(teacher="none")
_EXACT = GameConfig(teacher="exact")

ARMS = {
    "none": Arm(_NONE),
    "exact": Arm(_EXACT),
    "cosine": Arm(GameConfig(teacher="cosine")),
    "coalitions": Arm(replace(_NONE, coalitions=0.5)),
    "exact + coalitions": Arm(replace(_EXACT, coalitions=0.5)),
    "estimator": Arm(GameConfig(teacher="estimator")),
    "exact, scale 100": Arm(replace(_EXACT, similarity_scale=100.0)),
    "exact, scale 10": Arm(replace(_EXACT, similarity_scale=10.0)),
    "exact, scale auto": Arm(replace(_EXACT, similarity_scale="auto")),
    "kl 0": Arm(_NONE, LossConfig(kl=0.0)),
    "entity level only": Arm(_NONE, kind="entity"),
    "mean pooling": Arm(_NONE, kind="mean"),
}
"""By name. The scale of targets is 1,000 and kl is 2, unless the arm says otherwise."""

CLAIMED = ("none", "exact", "cosine", "coalitions", "exact + coalitions")
"""Arms that the named contrasts need; they come first and have all seeds."""

CONTRASTS = (
    ("exact", "none"),
    ("exact", "cosine"),
    ("cosine", "none"),
    ("coalitions", "none"),
    ("exact + coalitions", "none"),
)
"""Differences that are claims; their p-values are corrected together, within a data set."""

LEAST_SEEDS = 12
"""Of each arm of a claim, said beforehand."""
