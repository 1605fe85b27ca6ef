"""In place of CLIP: projections of the words and frames that another model has encoded."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from hbi_models.axes import TokenFeatures
from hbi_models.config_fields import require
from hbi_models.configs import TokensConfig

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""CLIP's log inverse temperature before training (Radford et al., 2021, section 2.5)."""


class TokenProjections(nn.Module):
    """Brings word and frame features to a common dimension, each by a layer norm and a linear map of its own.

    The norm is there because features of other models have any length, and words another length than frames.
    """

    def __init__(self, config: TokensConfig) -> None:
        super().__init__()
        self._dims = {"words": config.word_dim, "frames": config.frame_dim}
        self.words = nn.Sequential(nn.LayerNorm(config.word_dim), nn.Linear(config.word_dim, config.dim))
        self.frames = nn.Sequential(nn.LayerNorm(config.frame_dim), nn.Linear(config.frame_dim, config.dim))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def project(self, kind: Literal["words", "frames"], tokens: TokenFeatures) -> TokenFeatures:
        """Returns the tokens of a kind, ``words`` or ``frames``, in the common dimension.

        Raises:
            ValueError: they have another number of channels than the settings say.
        """
        given, needed = tokens.features.shape[-1], self._dims[kind]
        require(given == needed, f"the {kind} have {given} channels and model.tokens says {needed}; set it to {given}")
        network = self.words if kind == "words" else self.frames
        return TokenFeatures(network(tokens.features), tokens.mask)
