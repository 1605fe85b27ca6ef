"""The two towers of CLIP as the video-text model uses them: one feature per frame and per word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from hbi_models.axes import VideoBatch, at_least_float32
from hbi_models.clip.codecs import Codec
from hbi_models.clip.preprocessing import CLIP_MEAN, CLIP_STD, normalize_pixels
from hbi_models.clip.tokenizer import BytePairCodec
from hbi_models.config_fields import require
from hbi_models.transfer import is_at_hand, sent

IMAGE_EMBEDDINGS = ("class_embedding", "positional_embedding", "ln_pre", "cls_token", "pos_embed", "norm_pre")
"""What open_clip's and timm's image transformers call their layers between patches and blocks."""

TEXT_POOLS = ("argmax", "eos", "last", "first")
"""Where open_clip's text towers have the embedding of a whole text: at the end token, at the last or first position."""


class ClipBackbone(nn.Module):
    """The towers of an open_clip model, under the parameter names of OpenAI's release.

    Image side: ``visual`` as open_clip builds it. Text side: ``token_embedding``,
    ``positional_embedding``, ``transformer``, ``ln_final`` and ``text_projection``, wherever the
    open_clip class keeps them.
    """

    # open_clip's towers come without types.
    visual: Any
    transformer: Any
    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter | nn.Linear | None
    logit_scale: nn.Parameter

    def __init__(self, model: Any, *, embedding_dim: int, codec: Codec | None = None) -> None:
        super().__init__()
        # open_clip's CustomTextCLIP has a module for its text tower; its CLIP holds the parts of the tower itself.
        text = getattr(model, "text", model)
        self.codec: Codec = BytePairCodec() if codec is None else codec
        self.architecture: str | None = None
        """The JSON file that the architecture was read from, if the settings named one."""
        self.visual = model.visual
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.logit_scale = model.logit_scale
        self.embedding_dim = embedding_dim
        self.context_length: int = self.positional_embedding.shape[0]
        self.vocabulary_size: int = self.token_embedding.num_embeddings
        self.text_heads: int = self.transformer.resblocks[0].attn.num_heads
        self.is_causal = text.attn_mask is not None
        # CLIP has another name for this than a text tower that is a module.
        self.text_pool: str = text.pool_type if hasattr(text, "pool_type") else text.text_pool_type
        self.image_size_px = square_size(self.visual.image_size)
        self.pixel_mean: Sequence[float] = CLIP_MEAN
        self.pixel_std: Sequence[float] = CLIP_STD

    @property
    def reads_padding(self) -> bool:
        """Whether the text tower was trained with words that see the padding behind them (SigLIP, MobileCLIP-S)."""
        return not self.is_causal

    @property
    def text_width(self) -> int:
        """Channels inside the text tower, before the projection."""
        return int(self.positional_embedding.shape[1])

    @property
    def text_blocks(self) -> nn.ModuleList:
        """The transformer blocks of the text tower."""
        blocks: nn.ModuleList = self.transformer.resblocks
        return blocks

    def train(self, mode: bool = True) -> ClipBackbone:
        """Sets the training mode; batch norms keep their pretrained statistics.

        Batch statistics would come from one worker's rows only, and so depend on the number of workers.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def image_blocks(self) -> nn.ModuleList | nn.Sequential | None:
        """The transformer blocks of the image tower; None where it is made of something else."""
        blocks = getattr(getattr(self.visual, "trunk", None), "blocks", None)
        found: nn.ModuleList | nn.Sequential | None = blocks or getattr(
            getattr(self.visual, "transformer", None), "resblocks", None
        )
        return found

    def tower_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields all parameters but the temperature of the loss, which belongs to neither tower."""
        return ((name, value) for name, value in self.named_parameters() if name != "logit_scale")

    @property
    def uses_quick_gelu(self) -> bool:
        """Whether the text tower's activation is x·sigmoid(1.702x), as in OpenAI's weights."""
        return any(isinstance(module, QuickGELU) for module in self.transformer.modules())

    def normalize(self, frames: UInt8[Tensor, "*frames 3 height width"]) -> Float[Tensor, "*frames 3 height width"]:
        """Returns float pixels, centred and scaled as those that this model was trained on."""
        return normalize_pixels(frames, mean=self.pixel_mean, std=self.pixel_std)

    def video_batch(
        self,
        frames: UInt8[Tensor, "videos frames 3 height width"],
        mask: Bool[Tensor, "videos frames"] | None = None,
    ) -> VideoBatch:
        """Returns stored frames as this model reads them, on its device. ``mask`` tells the real ones, by default all.

        ``frames`` are squares of ``image_size_px`` pixels.
        """
        if mask is None:
            mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        device = self.logit_scale.device
        return VideoBatch(self.normalize(sent(frames, device)), sent(mask, device))

    def encode_frames(self, pixels: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames dim"]:
        """Returns one projected feature per image (of a ViT: its class token), not normalised."""
        features = self.visual(pixels)
        # Some towers also return their patch tokens.
        projected: Tensor = features[0] if isinstance(features, tuple) else features
        return at_least_float32(projected)

    def encode_videos(self, videos: VideoBatch) -> Float[Tensor, "videos frames dim"]:
        """Returns the feature of every frame, 0 at padding."""
        pixels, mask = videos.pixels, videos.mask
        if is_at_hand(pixels):
            # Towers take no empty batch, and in training their parameters still need a gradient of 0.
            encoded = mask if mask.any() else torch.ones_like(mask)
            features = self.encode_frames(pixels[encoded])
            padded = features.new_zeros((*encoded.shape, features.shape[-1]))
            padded[encoded] = features
        else:
            # Only the device knows which frames are padding. To encode them, too, costs less than to ask: the device
            # would wait for the host, and every batch would have its own size of memory. An exported graph cannot ask
            # at all.
            features = self.encode_frames(rearrange(pixels, "videos frames ... -> (videos frames) ..."))
            padded = rearrange(features, "(videos frames) dim -> videos frames dim", videos=pixels.shape[0])
        return padded.masked_fill(rearrange(~mask, "videos frames -> videos frames 1"), 0)

    def encode_words(
        self, token_ids: Int[Tensor, "texts words"], mask: Bool[Tensor, "texts words"]
    ) -> Float[Tensor, "texts words dim"]:
        """Returns one projected feature per token, not normalised; unspecified at padding.

        Raises:
            ValueError: The captions have more tokens than the tower has positions.
        """
        self._require_positions(token_ids)
        return self._read(token_ids, mask)[:, : token_ids.shape[1]]

    def embed_texts(
        self, token_ids: Int[Tensor, "texts words"], mask: Bool[Tensor, "texts words"]
    ) -> Float[Tensor, "texts dim"]:
        """Returns the model's own embedding of whole texts, not normalised: what it was trained to compare with images.

        Raises:
            ValueError: As :meth:`encode_words`.
        """
        self._require_positions(token_ids)
        if self.text_pool == "last" and not self.reads_padding:
            # The last position sees all real words, whatever stands between.
            token_ids, mask = self._filled(token_ids, mask)
        features = self._read(token_ids, mask)
        if self.text_pool == "first":
            return features[:, 0]
        if self.text_pool == "last":
            return features[:, -1]
        # The end token has the largest id of its caption (argmax), or is told by its own (eos): it is the last one.
        return features[torch.arange(len(features), device=mask.device), mask.sum(dim=1).clamp(min=1) - 1]

    def _require_positions(self, token_ids: Tensor) -> None:
        num_words = token_ids.shape[1]
        require(
            num_words <= self.context_length,
            f"the captions have {num_words} tokens, but this CLIP has {self.context_length} text positions; "
            f"lower max_words to {self.context_length} or choose another clip.architecture",
        )

    def _filled(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The texts with padding up to the last position, and a mask of every position."""
        missing = self.context_length - token_ids.shape[1]
        filled = F.pad(token_ids.where(mask, self.codec.pad_id), (0, missing), value=self.codec.pad_id)
        return filled, torch.ones_like(filled, dtype=torch.bool)

    def _read(self, token_ids: Tensor, mask: Tensor) -> Float[Tensor, "texts positions dim"]:
        """Returns a projected feature for each given position, or for all that the tower has where it reads padding."""
        if self.reads_padding:
            token_ids, mask = self._filled(token_ids, mask)
        num_words = token_ids.shape[1]
        hidden = self.token_embedding(token_ids) + self.positional_embedding[:num_words]
        additive = None
        if self.is_causal:
            # Real words see no padding behind them anyway. The mask of the keys gives padding its published features,
            # which the merges read with the quirk encode_padding.
            causal = torch.ones(num_words, num_words, dtype=torch.bool, device=mask.device).tril()
            additive = additive_attention_mask(
                causal & rearrange(mask, "texts keys -> texts 1 keys"), heads=self.text_heads
            )
        hidden = self.transformer(hidden, attn_mask=additive)
        return at_least_float32(self._project_words(self.ln_final(hidden)))

    def _project_words(self, hidden: Float[Tensor, "texts words width"]) -> Float[Tensor, "texts words dim"]:
        if self.text_projection is None:
            return hidden
        if isinstance(self.text_projection, nn.Linear):
            projected: Tensor = self.text_projection(hidden)
            return projected
        return hidden @ self.text_projection

    def freeze_patch_embedding(self) -> None:
        """Stops training of the layer that turns pixels into patch tokens.

        Raises:
            ValueError: The image tower has no such layer.
        """
        trunk = getattr(self.visual, "trunk", None)
        layer = getattr(self.visual, "conv1", None) or getattr(trunk, "patch_embed", None)
        if layer is None:
            raise ValueError(
                f"clip.freeze_patch_embedding is true, but a {type(trunk or self.visual).__name__} has no patch "
                "embedding; set it to false"
            )
        layer.requires_grad_(False)

    def freeze_embeddings(self) -> None:
        """Stops training of token, class and position embeddings and of the norm in front of image blocks.

        A convolutional image tower has none of these; only the words' embeddings are frozen then.
        """
        tower = getattr(self.visual, "trunk", self.visual)
        image = (getattr(tower, name, None) for name in IMAGE_EMBEDDINGS)
        for layer in (self.token_embedding, self.positional_embedding, *image):
            if layer is not None:
                layer.requires_grad_(False)

    def checkpoint_gradients(self) -> None:
        """Makes both towers recompute their activations in the backward pass."""
        self.visual.set_grad_checkpointing(True)
        self.transformer.grad_checkpointing = True


def additive_attention_mask(
    allowed: Bool[Tensor, "items queries keys"], *, heads: int
) -> Float[Tensor, "items_heads queries keys"]:
    """Returns what ``nn.MultiheadAttention`` adds to its logits: 0 where allowed, elsewhere -inf.

    A query without any allowed key sees all of them. Its result is padding, but must not be NaN, because NaN times 0
    would reach real tokens.
    """
    allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
    additive = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)
    # nn.MultiheadAttention has items and heads in one axis, the heads of an item side by side.
    return repeat(additive, "items queries keys -> (items heads) queries keys", heads=heads)


def square_size(size: int | tuple[int, int]) -> int:
    """Returns the side of a square image in pixels.

    Raises:
        ValueError: The tower wants images that are not square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    require(height == width, f"this CLIP wants images of {height} x {width} pixels; only square ones are supported")
    return height
