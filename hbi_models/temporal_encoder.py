"""The transformer over the frames of a video, on top of CLIP's frame features."""

from __future__ import annotations

from functools import partial

import torch
from einops import repeat
from open_clip.transformer import LayerNorm, QuickGELU, Transformer
from torch import nn

from hbi_models.axes import TokenFeatures
from hbi_models.clip.backbone import ClipBackbone, additive_attention_mask
from hbi_models.config_fields import require
from hbi_models.configs import TemporalConfig

HEAD_WIDTH = 64
"""Channels per attention head in every transformer of CLIP."""


class TemporalEncoder(nn.Module):
    """CLIP's transformer blocks over frames, with learned positions, added to its input.

    Frames see all real frames of their video, earlier and later ones. Blocks and names are
    those of CLIP's text tower, whose first blocks can be copied in.
    """

    def __init__(self, dim: int, config: TemporalConfig, *, num_positions: int, quick_gelu: bool) -> None:
        super().__init__()
        self.positions = nn.Embedding(num_positions, dim)
        self.heads = max(dim // HEAD_WIDTH, 1)
        self.transformer = Transformer(
            dim,
            config.layers,
            self.heads,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )

    @torch.no_grad()
    def copy_clip_text(self, clip: ClipBackbone) -> None:
        """Copies the first blocks and the positions of CLIP's text tower.

        Raises:
            ValueError: The text tower is too narrow, too wide or too shallow, or has other blocks (SigLIP SO400M).
        """
        num_layers, dim = len(self.transformer.resblocks), self.positions.embedding_dim
        require(
            clip.text_width == dim and len(clip.text_blocks) >= num_layers,
            f"temporal.init_from_clip_text needs a text tower of width {dim} with {num_layers} blocks or more, but "
            f"this CLIP's has width {clip.text_width} and {len(clip.text_blocks)} blocks; set it to false or "
            "lower temporal.layers",
        )
        for block, text_block in zip(self.transformer.resblocks, clip.text_blocks, strict=False):
            weights = text_block.state_dict()
            require(
                {name: value.shape for name, value in weights.items()}
                == {name: value.shape for name, value in block.state_dict().items()},
                "temporal.init_from_clip_text needs a text tower with CLIP's blocks, whose inner layers are four times "
                "as wide; set it to false for this one",
            )
            block.load_state_dict(weights)
        num_rows = min(clip.context_length, self.positions.num_embeddings)
        self.positions.weight[:num_rows] = clip.positional_embedding[:num_rows]

    def forward(self, frames: TokenFeatures) -> TokenFeatures:
        """Returns the frame features plus what the blocks add from the other frames of the video.

        Raises:
            ValueError: The videos have more frames than there are positions.
        """
        num_frames = frames.features.shape[1]
        require(
            num_frames <= self.positions.num_embeddings,
            f"the videos have {num_frames} frames, but the temporal encoder has {self.positions.num_embeddings} "
            "positions; sample at most max_frames frames",
        )
        allowed = repeat(frames.mask, "videos keys -> videos queries keys", queries=num_frames)
        hidden = frames.features + self.positions.weight[:num_frames]
        hidden = self.transformer(hidden, attn_mask=additive_attention_mask(allowed, heads=self.heads))
        # Added without their positions, as published.
        return TokenFeatures(frames.features + hidden, frames.mask)
