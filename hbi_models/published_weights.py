"""Names of published checkpoints ↔ ours: functions from dict to dict.

Both directions are strict: every tensor has a counterpart, except the few that the published
code stores and never uses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from hbi_models.configs import LEVELS
from hbi_models.weight_names import listed

# The published attributes of the entity, action and event level differ by a suffix,
LEVEL_SUFFIXES = dict(zip(LEVELS, ("", "0", "1"), strict=True))
# those of the two merges by a number.
MERGE_NUMBERS = dict(zip(LEVELS[1:], ("0", "1"), strict=True))

ESTIMATOR_NAMES = {
    "Q": "query",
    "K": "key",
    "V": "value",
    "cnn1.weight": "conv_in.weight",
    "cnn1.bias": "conv_in.bias",
    "cnn2.weight": "conv_out.weight",
    "cnn2.bias": "conv_out.bias",
}

MERGE_MODULES = {
    "ctm{}.conv.conv.": "conv.",
    "ctm{}.norm.": "norm.",
    "ctm{}.score.": "score.",
    "block{}.norm1.": "block.norm.",
    "block{}.attn.q.": "block.query.",
    "block{}.attn.kv.": "block.key_value.",
    "block{}.attn.proj.": "block.projection.",
}

HEAD_MODULES = {
    "classifier{}.": "classifier.",
    "t_weight{}.": "text_importance.",
    "v_weight{}.": "video_importance.",
    "t_proj{}.": "text_projection.",
    "v_proj{}.": "video_projection.",
}

# Not used: a batch normalisation that no published forward pass calls, and CLIP's causal mask.
DEAD_NAME = re.compile(r"(^|\.)bn\.(weight|bias|running_mean|running_var|num_batches_tracked)$|(^|\.)attn_mask$")


def retrieval_prefixes() -> dict[str, str]:
    """Returns the published beginnings of the retrieval model's names, and ours."""
    prefixes = {
        "clip.": "clip.",
        "frame_position_embeddings.": "temporal.positions.",
        "transformerClip.": "temporal.transformer.",
    }
    for level, suffix in LEVEL_SUFFIXES.items():
        prefixes[f"text_weight_fc{suffix}."] = f"text_importance.{level}."
        prefixes[f"video_weight_fc{suffix}."] = f"video_importance.{level}."
        prefixes |= {
            f"banzhafmodel{suffix}.{theirs}": f"predictors.{level}.{ours}" for theirs, ours in ESTIMATOR_NAMES.items()
        }
    for level, number in MERGE_NUMBERS.items():
        for theirs, ours in MERGE_MODULES.items():
            prefixes[f"t_{theirs.format(number)}"] = f"text_merges.{level}.{ours}"
            prefixes[f"v_{theirs.format(number)}"] = f"video_merges.{level}.{ours}"
    return prefixes | {f"banzhafteacher.{theirs}": f"teacher.{ours}" for theirs, ours in ESTIMATOR_NAMES.items()}


def video_qa_prefixes() -> dict[str, str]:
    """Returns the published beginnings of the question answering model's names, and ours."""
    prefixes = {theirs: f"encoder.{ours}" for theirs, ours in retrieval_prefixes().items()}
    for level, suffix in LEVEL_SUFFIXES.items():
        prefixes |= {theirs.format(suffix): f"answer_heads.{level}.{ours}" for theirs, ours in HEAD_MODULES.items()}
    return prefixes


def retrieval_from_published(published: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Returns a published retrieval checkpoint under our names.

    Args:
        published: The published state dict.
        expected: Names that the model wants, ``model.state_dict().keys()``. If it has no teacher
            network, the checkpoint's teacher is left out.

    Raises:
        ValueError: Tensors are missing, or left over.
    """
    return renamed(without_surplus_teacher(published, expected), retrieval_prefixes(), expected)


def retrieval_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our retrieval model's state dict under published names, unused entries included.

    Raises:
        ValueError: A tensor has no published name.
    """
    return with_unused_batch_norms(exported(ours, retrieval_prefixes()))


def video_qa_from_published(published: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Returns a published question answering checkpoint under our names.

    Args:
        published: The published state dict.
        expected: Names that the model wants, as for ``retrieval_from_published``.

    Raises:
        ValueError: Tensors are missing, or left over.
    """
    return renamed(without_surplus_teacher(published, expected), video_qa_prefixes(), expected)


def video_qa_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our question answering model's state dict under published names, unused entries included.

    Raises:
        ValueError: A tensor has no published name.
    """
    return with_unused_batch_norms(exported(ours, video_qa_prefixes()))


def estimator_from_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a published estimator checkpoint under our names.

    Raises:
        ValueError: Tensors are missing, or left over.
    """
    return renamed(published, ESTIMATOR_NAMES, ESTIMATOR_NAMES.values())


def estimator_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our estimator's state dict under published names, unused entries included.

    Raises:
        ValueError: A tensor has no published name.
    """
    published = exported(ours, ESTIMATOR_NAMES)
    return published | unused_batch_norm("", published["cnn1.bias"])


def our_name(published: str, prefixes: Mapping[str, str]) -> str | None:
    """Returns our name of a published tensor, or None if it has none."""
    # Each ends with a dot or is a whole name, so that none is the beginning of another.
    for theirs, ours in prefixes.items():
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    return None


def renamed(
    published: Mapping[str, Tensor], prefixes: Mapping[str, str], expected: Collection[str]
) -> dict[str, Tensor]:
    """Returns the tensors under our names, exactly the expected ones; raises ``ValueError`` otherwise."""
    names = {name: our_name(name, prefixes) for name in published if not DEAD_NAME.search(name)}
    left_over = [theirs for theirs, ours in names.items() if ours not in expected]
    missing = set(expected) - set(names.values())
    if left_over or missing:
        raise ValueError(
            f"the published checkpoint does not fit the model: tensors of the model are missing: {listed(missing)}; "
            f"of the checkpoint are left over: {listed(left_over)}; build the model with the checkpoint's kind, CLIP "
            "architecture, number of temporal layers and teacher"
        )
    return {ours: published[theirs] for theirs, ours in names.items() if ours is not None}


def exported(ours: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns the tensors under published names; raises ``ValueError`` for one that has none."""
    inverse = {our: their for their, our in prefixes.items()}
    names = {name: our_name(name, inverse) for name in ours}
    unknown = [name for name, published in names.items() if published is None]
    if unknown:
        raise ValueError(
            f"no published name is known for {listed(unknown)}; only the models for retrieval and question answering "
            "and the estimator have them"
        )
    return {str(names[name]): value for name, value in ours.items()}


def without_surplus_teacher(published: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """Returns a published checkpoint, without its teacher if no expected name belongs to one."""
    if any("teacher" in name.split(".") for name in expected):
        return published
    return {name: value for name, value in published.items() if not name.startswith("banzhafteacher.")}


def with_unused_batch_norms(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a model's published tensors and the batch normalisation of each of its estimator networks."""
    networks = [name.removesuffix("Q") for name in published if re.fullmatch(r"banzhaf\w+\.Q", name)]
    for network in networks:
        published = published | unused_batch_norm(network, published[f"{network}cnn1.bias"])
    return published


def unused_batch_norm(prefix: str, like: Tensor) -> dict[str, Tensor]:
    """Returns the entries of a published network's batch normalisation, as initialised and never used."""
    return {
        f"{prefix}bn.weight": torch.ones_like(like),
        f"{prefix}bn.bias": torch.zeros_like(like),
        f"{prefix}bn.running_mean": torch.zeros_like(like),
        f"{prefix}bn.running_var": torch.ones_like(like),
        f"{prefix}bn.num_batches_tracked": torch.tensor(0),
    }
