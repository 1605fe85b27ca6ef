"""How much of CLIP's towers is trained: everything, the last blocks, low-rank updates, or nothing.

PEFT's LoRA for ``nn.MultiheadAttention`` adds its updates to the weights before each forward pass and subtracts them
afterwards, so that gradients and rounding depend on the calls in between. Here a weight with its update is a
parametrization, which open_clip's and timm's blocks read like any weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.configs import ClipConfig, LoraConfig
from hbi_models.config_fields import require

ABOVE_BLOCKS = ("ln_post", "proj", "norm", "fc_norm", "attn_pool", "head", "ln_final", "text_projection")
"""What open_clip's and timm's transformers call their layers above the blocks."""

_JOINT = 3
"""Queries, keys and values, where one weight holds them all."""


def choose_trained(backbone: ClipBackbone, config: ClipConfig) -> None:
    """Lets ``config.train`` decide which parameters of the towers require a gradient.

    Autograd stores no activations of layers below the lowest trained parameter, so frozen layers there cost no
    memory for them. With ``lora``, :func:`add_lora` adds what is trained.

    Raises:
        ValueError: A tower has no blocks, or fewer than are to be trained.
    """
    if config.train == "all":
        if config.freeze_patch_embedding:
            backbone.freeze_patch_embedding()
        if config.freeze_embeddings:
            backbone.freeze_embeddings()
        return
    for _, parameter in backbone.tower_parameters():
        parameter.requires_grad_(False)
    if config.train == "last_layers":
        _unfreeze_last(backbone, config.last_layers)
    elif config.train == "lora":
        # For its check alone: add_lora adds the updates later, when the weights have their initial values.
        _blocks(backbone, config.train)


def _unfreeze_last(backbone: ClipBackbone, count: int) -> None:
    for blocks, tower in zip(_blocks(backbone, "last_layers"), ("image", "text"), strict=True):
        require(
            count <= len(blocks),
            f"clip.last_layers is {count}, but the {tower} tower has {len(blocks)} blocks; lower it, or set clip.train "
            "to all",
        )
        for block in list(blocks)[-count:]:
            block.requires_grad_(True)
    # open_clip has these layers on the model or on a tower, timm on the trunk inside of open_clip's tower.
    for owner in (backbone, backbone.visual, getattr(backbone.visual, "trunk", None)):
        for name in ABOVE_BLOCKS:
            if (layer := getattr(owner, name, None)) is not None and hasattr(layer, "requires_grad_"):
                layer.requires_grad_(True)


def _blocks(backbone: ClipBackbone, choice: str) -> tuple[nn.ModuleList | nn.Sequential, nn.ModuleList | nn.Sequential]:
    image = backbone.image_blocks
    if image is None:
        tower = type(getattr(backbone.visual, "trunk", backbone.visual)).__name__
        raise ValueError(
            f"clip.train is {choice}, but a {tower} has no transformer blocks; set it to all or none, or choose an "
            "architecture with a ViT"
        )
    return image, backbone.text_blocks


class LowRankUpdate(nn.Module):
    """W + alpha / rank · B A, with as many pairs (A, B) as there are square parts stacked in W."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, parts: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(parts, rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(parts, outputs // parts, rank))
        # Each part starts like an nn.Linear of its own.
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with its update, in the weight's own precision."""
        # In bfloat16 the sum would lose most of a small update, and differ from what a checkpoint holds.
        device = weight.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return weight + self.scale * (self.up @ self.down).flatten(0, 1)


def add_lora(backbone: ClipBackbone, config: LoraConfig) -> None:
    """Adds trained low-rank updates to the chosen weights of all blocks; at first they are 0.

    Draws from torch's global generator. Call it when the weights have their initial values.

    Raises:
        ValueError: The image tower has no transformer blocks, or a block none of the chosen projections.
    """
    for blocks in _blocks(backbone, "lora"):
        for block in blocks:
            found = [place for place in _projections(block) if place[0] in config.projections]
            require(
                bool(found),
                f"a {type(block).__name__} has none of the projections {list(config.projections)} of clip.lora",
            )
            for _, module, name, parts in found:
                weight = getattr(module, name)
                update = LowRankUpdate(weight, rank=config.rank, alpha=config.alpha, parts=parts)
                parametrize.register_parametrization(module, name, update)


def _projections(block: nn.Module) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Kind, module, name of the weight, and number of parts in it."""
    for path, module in block.named_modules():
        last = path.rpartition(".")[2]
        # nn.MultiheadAttention holds this weight itself, without an nn.Linear.
        if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
            yield "attention_in", module, "in_proj_weight", _JOINT
        elif not isinstance(module, nn.Linear):
            continue
        elif "mlp" in path.split("."):
            yield "mlp", module, "weight", 1
        elif last == "qkv":
            yield "attention_in", module, "weight", _JOINT
        elif last in ("q_proj", "k_proj", "v_proj"):
            yield "attention_in", module, "weight", 1
        elif last in ("out_proj", "proj"):
            yield "attention_out", module, "weight", 1


def has_updates(model: nn.Module) -> bool:
    """Whether any weight of the model has a low-rank update."""
    return any(parametrize.is_parametrized(module) for module in model.modules())


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a model with their updates added, under the names that they have without updates."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        prefix = f"{path}." if path else ""
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for name in parametrizations:
            for stored in [key for key in state if key.startswith(f"{prefix}parametrizations.{name}.")]:
                del state[stored]
            # Reading the attribute adds the update.
            state[f"{prefix}{name}"] = getattr(module, name).detach()
    return state
