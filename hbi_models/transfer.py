"""Tensors on their way between the host and a device, so that neither waits for the other without need.

Work for an accelerator is queued. A copy from ordinary memory, and every reading of a result, makes the host wait
until the queue is empty, and then the device wait for the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns ``tensor`` on ``device``; what lies on the host is copied from page-locked memory, while both go on."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type != "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_at_hand(tensor: Tensor) -> bool:
    """Returns whether the host may decide by the values of ``tensor``, without waiting for a device.

    No graph that is being exported may: it holds for other values, too.
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_exporting()


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the values of tensors of one device on the host, without gradient, in a single transfer."""
    tensors = [tensor.detach() for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return tensors
    # The widest elements first: each tensor then begins at a multiple of its elements' size.
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
    as_bytes = [tensors[number].contiguous().reshape(-1).view(torch.uint8) for number in order]
    message = torch.cat(as_bytes).cpu()
    found = list(tensors)
    parts = torch.split(message, [len(part) for part in as_bytes])
    for number, part in zip(order, parts, strict=True):
        found[number] = part.view(tensors[number].dtype).reshape(tensors[number].shape)
    return found
