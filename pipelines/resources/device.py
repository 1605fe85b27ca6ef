"""Where a process computes."""

from __future__ import annotations

import torch


def compute_device() -> torch.device:
    """The GPU that this process sees, or the CPU. Ray shows an actor only the GPUs that it was given."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
