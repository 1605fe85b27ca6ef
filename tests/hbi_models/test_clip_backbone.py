"""The towers against open_clip's own forward, and their masks."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from hbi_models.clip.backbone import ClipBackbone, additive_attention_mask
from hbi_models.clip.loading import build_clip
from tests.hbi_models.tiny_model import IMAGE_PX, TINY_CLIP, length_mask

CUSTOM_TEXT = {**TINY_CLIP, "custom_text": True}
LINEAR_PROJECTION = {**CUSTOM_TEXT, "text_cfg": {**TINY_CLIP["text_cfg"], "proj_bias": True}}


def captions(lengths: list[int], max_words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns captions that end, as CLIP's do, with the largest id."""
    mask = length_mask(lengths, max_words)
    token_ids = torch.randint(1, 49, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    token_ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 49
    return token_ids, mask


@pytest.mark.parametrize("architecture", [TINY_CLIP, CUSTOM_TEXT, LINEAR_PROJECTION])
@torch.no_grad()
def test_features_equal_those_of_open_clip(architecture: dict[str, Any]) -> None:
    settings = {name: value for name, value in architecture.items() if name != "custom_text"}
    model = (open_clip.CustomTextCLIP if "custom_text" in architecture else open_clip.CLIP)(**settings).eval()
    backbone = ClipBackbone(model, embedding_dim=architecture["embed_dim"])
    token_ids, mask = captions([16, 5, 9], max_words=16)
    words = backbone.encode_words(token_ids, mask)
    # Behind the end token open_clip masks nothing, but its causal mask hides that from the end token.
    torch.testing.assert_close(words[torch.arange(3), token_ids.argmax(dim=1)], model.encode_text(token_ids))
    pixels = torch.randn(2, 3, IMAGE_PX, IMAGE_PX)
    torch.testing.assert_close(backbone.encode_frames(pixels), model.encode_image(pixels))


def test_sizes_are_those_of_the_architecture() -> None:
    backbone = build_clip(TINY_CLIP)
    assert backbone.embedding_dim == 32
    assert backbone.image_size_px == IMAGE_PX
    assert backbone.context_length == 16
    assert backbone.vocabulary_size == 50
    assert backbone.uses_quick_gelu
    assert not build_clip({**TINY_CLIP, "quick_gelu": False}).uses_quick_gelu


@pytest.mark.parametrize("is_causal", [True, False])
@torch.no_grad()
def test_padding_does_not_change_real_words(is_causal: bool) -> None:
    text_cfg = {**TINY_CLIP["text_cfg"], "no_causal_mask": not is_causal}
    backbone = build_clip({**TINY_CLIP, "text_cfg": text_cfg})
    assert backbone.is_causal is is_causal
    token_ids, mask = captions([4, 6], max_words=12)
    padded = backbone.encode_words(token_ids, mask)
    token_ids[~mask] = 7
    torch.testing.assert_close(backbone.encode_words(token_ids, mask)[mask], padded[mask])
    torch.testing.assert_close(backbone.encode_words(token_ids[:, :6], mask[:, :6])[0, :4], padded[0, :4])


@torch.no_grad()
def test_training_and_inference_encode_alike() -> None:
    backbone = build_clip(TINY_CLIP)
    token_ids, mask = captions([4, 6], max_words=12)
    pixels = torch.randn(2, 3, IMAGE_PX, IMAGE_PX)
    trained = backbone.encode_words(token_ids, mask), backbone.encode_frames(pixels)
    backbone.eval()
    torch.testing.assert_close(backbone.encode_words(token_ids, mask)[mask], trained[0][mask])
    torch.testing.assert_close(backbone.encode_frames(pixels), trained[1])


@pytest.mark.parametrize("pool", ["argmax", "last"])
def test_more_tokens_than_positions_are_refused(pool: str) -> None:
    backbone = build_clip({**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "pool_type": pool}})
    token_ids, mask = captions([17], max_words=17)
    for encode in (backbone.encode_words, backbone.embed_texts):
        with pytest.raises(
            ValueError, match=r"have 17 tokens, but this CLIP has 16 text positions; lower max_words to"
        ):
            encode(token_ids, mask)


@torch.no_grad()
def test_a_caption_without_words_is_finite() -> None:
    token_ids, mask = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.bool)
    assert build_clip(TINY_CLIP).encode_words(token_ids, mask).isfinite().all()


def test_captions_longer_than_the_positions_are_refused() -> None:
    token_ids, mask = captions([17], max_words=17)
    with pytest.raises(ValueError, match="17 tokens, but this CLIP has 16"):
        build_clip(TINY_CLIP).encode_words(token_ids, mask)


def test_the_additive_mask_repeats_each_item_for_its_heads() -> None:
    allowed = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    mask = additive_attention_mask(allowed, heads=2)
    infinity = torch.inf
    first, second = [[0.0, -infinity], [0.0, 0.0]], [[0.0, 0.0], [-infinity, 0.0]]
    assert mask.tolist() == [first, first, second, second]


def test_only_the_patch_convolution_is_frozen() -> None:
    backbone = build_clip(TINY_CLIP)
    backbone.freeze_patch_embedding()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {"visual.conv1.weight"}


def test_embeddings_are_frozen_below_the_blocks() -> None:
    backbone = build_clip(TINY_CLIP)
    backbone.freeze_embeddings()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "token_embedding.weight",
        "positional_embedding",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.ln_pre.weight",
        "visual.ln_pre.bias",
    }


def test_embeddings_of_other_image_towers_are_frozen_too() -> None:
    timm = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
    backbone = build_clip({**TINY_CLIP, "vision_cfg": timm})
    backbone.freeze_embeddings()
    frozen = {name for name, parameter in backbone.visual.named_parameters() if not parameter.requires_grad}
    assert frozen == {"trunk.cls_token", "trunk.pos_embed"}


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_gradients_equal_the_others(frozen: bool) -> None:
    gradients = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        backbone = build_clip(TINY_CLIP)
        if frozen:
            backbone.freeze_patch_embedding()
            backbone.freeze_embeddings()
        if checkpoints:
            backbone.checkpoint_gradients()
        token_ids, mask = captions([4, 6], max_words=12)
        pixels = torch.randn(2, 3, IMAGE_PX, IMAGE_PX)
        (backbone.encode_words(token_ids, mask)[mask].sum() + backbone.encode_frames(pixels).sum()).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.requires_grad})
    gradients[0].pop("logit_scale")
    gradients[1].pop("logit_scale")
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])
