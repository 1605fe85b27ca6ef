"""Our models as published checkpoints, which tests write and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from hbi_models.published_weights import ESTIMATOR_NAMES, our_name, retrieval_prefixes, video_qa_prefixes


def retrieval_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our retrieval model's state dict under published names, unused entries included."""
    return with_unused_batch_norms(exported(ours, retrieval_prefixes()))


def video_qa_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our question answering model's state dict under published names, unused entries included."""
    return with_unused_batch_norms(exported(ours, video_qa_prefixes()))


def estimator_to_published(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our estimator's state dict under published names, unused entries included."""
    published = exported(ours, ESTIMATOR_NAMES)
    return published | unused_batch_norm("", published["cnn1.bias"])


def exported(ours: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under published names."""
    inverse = {our: their for their, our in prefixes.items()}
    names = {name: our_name(name, inverse) for name in ours}
    assert all(names.values()), names
    return {str(names[name]): value for name, value in ours.items()}


def with_unused_batch_norms(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's published tensors and the batch normalisation of each of its estimator networks."""
    networks = [name.removesuffix("Q") for name in published if re.fullmatch(r"banzhaf\w+\.Q", name)]
    for network in networks:
        published = published | unused_batch_norm(network, published[f"{network}cnn1.bias"])
    return published


def unused_batch_norm(prefix: str, like: Tensor) -> dict[str, Tensor]:
    """The entries of a published network's batch normalisation, as initialised and never used."""
    return {
        f"{prefix}bn.weight": torch.ones_like(like),
        f"{prefix}bn.bias": torch.zeros_like(like),
        f"{prefix}bn.running_mean": torch.zeros_like(like),
        f"{prefix}bn.running_var": torch.ones_like(like),
        f"{prefix}bn.num_batches_tracked": torch.tensor(0),
    }
