"""Weights under the names of ``transformers``' CLIPModel, as models on the Hugging Face Hub are stored.

The towers are the same; names differ, projections are transposed, and query, key and value of an
attention are three tensors instead of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TOWERS = {"text_model.": "", "vision_model.": "visual."}
"""Their beginnings and ours."""

TENSORS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
}

MODULES = {
    "final_layer_norm.": "ln_final.",
    # Spelt so in transformers.
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
}

IN_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}

PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}

_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.*)")
_INPUT = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def is_transformers_clip(state: Mapping[str, Tensor]) -> bool:
    """Returns whether these are the names of a CLIPModel."""
    return any(name.startswith("text_model.encoder.layers.") for name in state)


def from_transformers_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under OpenAI's names; those without a counterpart keep theirs."""
    named: dict[str, Tensor] = {}
    inputs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name in PROJECTIONS:
            named[PROJECTIONS[name]] = tensor.t().contiguous()
            continue
        # The numbers 0, 1, 2, ..., which older versions of transformers store as a buffer.
        if name.endswith(".position_ids"):
            continue
        tower = next((theirs for theirs in TOWERS if name.startswith(theirs)), "")
        place = name.removeprefix(tower)
        block = _BLOCK.fullmatch(place)
        if block and (part := _INPUT.fullmatch(block[2])):
            joined = f"{TOWERS[tower]}transformer.resblocks.{block[1]}.attn.in_proj_{part[2]}"
            inputs.setdefault(joined, {})[part[1]] = tensor
        elif block:
            named[f"{TOWERS[tower]}transformer.resblocks.{block[1]}.{_renamed(block[2], IN_BLOCK)}"] = tensor
        elif tower:
            named[TOWERS[tower] + TENSORS.get(place, _renamed(place, MODULES))] = tensor
        else:
            named[name] = tensor
    # nn.MultiheadAttention stacks queries, keys and values in this order.
    joined_inputs = {
        name: torch.cat([parts[part] for part in "qkv" if part in parts]) for name, parts in inputs.items()
    }
    return named | joined_inputs


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in prefixes.items() if name.startswith(theirs)), name
    )
