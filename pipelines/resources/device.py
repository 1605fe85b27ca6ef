"""Where a process computes, and in which arithmetic."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

from pipelines.recipe.training import Precision

CPU = torch.device("cpu")

_may_use_gpus: ContextVar[bool] = ContextVar("may_use_gpus", default=True)


def compute_device() -> torch.device:
    """The GPU that this process may use, or the CPU.

    A process that Ray started has what Ray gave it, and no more: a GPU that it merely sees is another's. Elsewhere it
    is the first GPU, if there is one.

    Raises:
        RuntimeError: Ray gave it a GPU, and this PyTorch cannot use it.
    """
    given = _given_by_ray() if _may_use_gpus.get() else []
    if given is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else CPU
    if not given:
        return CPU
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"Ray gave this process GPU {', '.join(given)}, and PyTorch {torch.__version__} cannot use it; install "
            "PyTorch for the machine's driver, or set gpus_per_worker or gpus_per_actor of the stage's resources to 0"
        )
    return torch.device("cuda", _place(given[0], os.environ.get("CUDA_VISIBLE_DEVICES")))


@contextmanager
def with_gpus(gpus: float | None) -> Iterator[None]:
    """Within it, this process takes no GPU if ``gpus`` is 0, even if it sees some.

    For work in the process of the command, to which Ray gives nothing.
    """
    token = _may_use_gpus.set(gpus != 0)
    try:
        yield
    finally:
        _may_use_gpus.reset(token)


def _given_by_ray() -> Sequence[str] | None:
    """The ids of this process's GPUs; None where it is none of Ray's workers."""
    # Whoever has not imported it is none, and need not load it.
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    # The driver is connected, too, but Ray gives GPUs to tasks and actors alone.
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return [str(name) for name in context.get_accelerator_ids().get("GPU", [])]


def _place(given: str, visible: str | None) -> int:
    """The number under which PyTorch knows a GPU: its place among those that the process sees."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    if not names:
        return int(given)
    # A single visible GPU must be the one that was given, whatever it is called.
    if given not in names and len(names) > 1:
        raise RuntimeError(f"Ray gave this process GPU {given}, and CUDA_VISIBLE_DEVICES shows it {visible}; unset it")
    return names.index(given) if given in names else 0


def require_precision(precision: Precision, device: torch.device) -> None:
    """Checks that ``device`` computes in ``precision`` itself.

    Raises:
        ValueError: it would imitate it, at a fraction of the speed.
    """
    if precision != "bfloat16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"precision is bfloat16, and {torch.cuda.get_device_name(device)} can only imitate it, more slowly than it "
            "computes in float32; set precision to float16, whose losses are scaled, or to float32"
        )


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within it, matrix products are computed in ``precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def describe_device(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
