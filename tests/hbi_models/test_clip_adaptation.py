"""Which parameters of the towers are trained, what that costs, and low-rank updates against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hbi_models.clip.adaptation import add_lora, choose_trained, has_updates, merged_state_dict
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.configs import ClipConfig, LoraConfig
from hbi_models.clip.loading import build_clip
from tests.hbi_models.test_clip_backbone import captions
from tests.hbi_models.tiny_model import IMAGE_PX, TINY_CLIP

THREE_BLOCKS = {
    **TINY_CLIP,
    "vision_cfg": {**TINY_CLIP["vision_cfg"], "layers": 3},
    "text_cfg": {**TINY_CLIP["text_cfg"], "layers": 3},
}
TIMM = {
    **THREE_BLOCKS,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": IMAGE_PX,
    },
}
CONVOLUTIONS = {**TINY_CLIP, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}


def backbone(architecture: dict[str, Any] = THREE_BLOCKS, **settings: Any) -> ClipBackbone:
    torch.manual_seed(0)
    built = build_clip(architecture)
    choose_trained(built, ClipConfig(**settings))
    return built


def trained(model: ClipBackbone) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def features(model: ClipBackbone, pixels_per_side: int = IMAGE_PX) -> tuple[torch.Tensor, torch.Tensor]:
    token_ids, mask = captions([4, 6], max_words=12)
    pixels = torch.randn(2, 3, pixels_per_side, pixels_per_side, generator=torch.Generator().manual_seed(2))
    return model.encode_words(token_ids, mask)[mask], model.encode_frames(pixels)


def test_the_default_is_the_published_choice() -> None:
    every = {name for name, _ in backbone().named_parameters()}
    assert trained(backbone()) == every - {"visual.conv1.weight"}


def test_without_training_only_the_temperature_is_left() -> None:
    assert trained(backbone(train="none")) == {"logit_scale"}
    assert trained(backbone(CONVOLUTIONS, train="none")) == {"logit_scale"}


def test_the_last_layers_are_trained_with_what_is_above_them() -> None:
    names = trained(backbone(train="last_layers", last_layers=1))
    assert {name for name in names if ".2." not in name} == {
        "logit_scale",
        *("text_projection", "ln_final.weight", "ln_final.bias"),
        *("visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"),
    }
    every = {name for name, _ in backbone().named_parameters()}
    assert {name for name in every if "resblocks.2." in name} <= names
    timm = backbone(TIMM, train="last_layers", last_layers=2)
    blocks = len(timm.visual.trunk.blocks)
    image = {name for name in trained(timm) if name.startswith("visual.")}
    assert {name.split(".")[3] for name in image if ".blocks." in name} == {str(blocks - 2), str(blocks - 1)}
    assert "visual.head.proj.weight" in image
    assert not {name for name in image if "patch_embed" in name or "pos_embed" in name}


@pytest.mark.parametrize("train", ["last_layers", "lora"])
def test_towers_without_blocks_are_refused(train: str) -> None:
    with pytest.raises(ValueError, match=rf"clip\.train is {train}, but a ModifiedResNet has no transformer blocks"):
        backbone(CONVOLUTIONS, train=train)


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip\.last_layers is 4, but the image tower has 3 blocks"):
        backbone(train="last_layers", last_layers=4)


def kept_for_backward(model: ClipBackbone) -> int:
    """Numbers that autograd keeps of activations."""
    kept: dict[int, int] = {}
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held, so that no memory is used twice.
        _held = features(model)
        return sum(kept.values())


def test_frozen_layers_keep_nothing_for_the_backward_pass() -> None:
    everything = kept_for_backward(backbone())
    assert kept_for_backward(backbone(train="none")) == 0
    assert 0 < kept_for_backward(backbone(train="last_layers", last_layers=1)) < 0.5 * everything


def with_random_updates(architecture: dict[str, Any], config: LoraConfig) -> ClipBackbone:
    model = backbone(architecture, train="lora", lora=config)
    add_lora(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "parametrizations" in name and value.requires_grad:
            value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return model


@pytest.mark.parametrize("architecture", [THREE_BLOCKS, TIMM])
@torch.no_grad()
def test_updates_are_0_at_first_and_add_what_the_formula_says(architecture: dict[str, Any]) -> None:
    config = LoraConfig(rank=2, alpha=3.0, projections=("attention_in", "attention_out", "mlp"))
    plain = backbone(architecture).eval()
    model = backbone(architecture, train="lora", lora=config)
    add_lora(model, config)
    torch.testing.assert_close(features(model.eval()), features(plain))

    model = with_random_updates(architecture, config).eval()
    expected = plain.state_dict()
    changed = 0
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            name = path.replace(".parametrizations", "")
            down, up = module[0].down, module[0].up
            parts = [3.0 / 2 * up[part] @ down[part] for part in range(len(down))]
            expected[name] = expected[name] + torch.cat(parts)
            assert len(parts) == (3 if "qkv" in name or "in_proj" in name else 1)
            changed += 1
    assert changed == 4 * (len(model.image_blocks or ()) + len(model.text_blocks))
    merged = merged_state_dict(model)
    assert merged.keys() == plain.state_dict().keys()
    torch.testing.assert_close(merged, expected)
    before = features(plain)
    plain.load_state_dict(merged)
    torch.testing.assert_close(features(model), features(plain))
    assert not torch.allclose(features(plain)[0], before[0], atol=1e-3)
    assert has_updates(model) and not has_updates(plain)


def test_only_the_updates_are_trained_and_they_get_the_gradients_of_the_merged_weights() -> None:
    config = LoraConfig(rank=2, alpha=4.0, projections=("attention_in",))
    model = with_random_updates(THREE_BLOCKS, config)
    assert trained(model) - {"logit_scale"} == {
        f"{tower}resblocks.{block}.attn.parametrizations.in_proj_weight.0.{part}"
        for tower in ("visual.transformer.", "transformer.")
        for block in range(3)
        for part in ("down", "up")
    }
    plain = backbone(THREE_BLOCKS)
    plain.load_state_dict(merged_state_dict(model))
    for one in (model, plain):
        sum(part.square().sum() for part in features(one)).backward()  # type: ignore[union-attr]
    update: Any = model.transformer.resblocks[1].attn.parametrizations.in_proj_weight[0]
    gradient = plain.transformer.resblocks[1].attn.in_proj_weight.grad.unflatten(0, (3, -1))
    torch.testing.assert_close(update.down.grad, 2.0 * update.up.mT @ gradient)
    torch.testing.assert_close(update.up.grad, 2.0 * gradient @ update.down.mT)


@pytest.mark.parametrize("architecture", [THREE_BLOCKS, TIMM])
@pytest.mark.parametrize("train", ["lora", "last_layers"])
def test_checkpointed_gradients_equal_the_others(architecture: dict[str, Any], train: str) -> None:
    gradients = []
    for checkpoints in (False, True):
        config = LoraConfig(rank=2)
        model = backbone(architecture, train=train, last_layers=1)
        if train == "lora":
            model = with_random_updates(architecture, config)
        if checkpoints:
            model.checkpoint_gradients()
        sum(part.square().sum() for part in features(model)).backward()  # type: ignore[union-attr]
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
        assert gradients[-1].pop("logit_scale") is None
    assert gradients[0] and all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_block_without_the_chosen_projections_is_refused() -> None:
    model = backbone()
    for block in model.text_blocks:
        block.mlp = nn.Identity()
    with pytest.raises(ValueError, match=r"has none of the projections \['mlp'\]"):
        add_lora(model, LoraConfig(projections=("mlp",)))
