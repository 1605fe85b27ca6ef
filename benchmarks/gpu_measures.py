"""What the parts of :mod:`benchmarks.gpu` share: sizes, the limits of the device, and how time and memory are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import TemporalConfig

VIT_B_32 = ClipConfig(architecture="ViT-B-32-quickgelu", pretrained=None)
# Without recomputation the activations of 1,536 images need about 160 GB.
VIT_B_16 = ClipConfig(architecture="ViT-B-16-quickgelu", pretrained=None, gradient_checkpointing=True)


@dataclass(frozen=True)
class Sizes:
    """What is measured; a test takes smaller ones."""

    steps: tuple[ClipConfig, ...] = (VIT_B_32, VIT_B_16)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    batch: int = 128
    words: int = 24
    frames: int = 12
    long_tokens: int = 64
    """Words and frames of ActivityNet."""
    long_items: int = 4917
    product: int = 8192
    """Rows and columns of the matrix product that measures the peak."""
    dim: int = 512
    side: int = 224
    """Pixels of a frame's side, for augmentation alone."""
    videos: tuple[tuple[int, int], ...] = ((320, 240), (1920, 1080))
    """Pixels of the frames of videos that are decoded."""
    times: int = 10
    compiler: str = "inductor"


@dataclass(frozen=True)
class Limits:
    """Of the device, measured."""

    bf16_flops: float
    fp32_flops: float
    bytes_per_s: float


def seconds(device: torch.device, work: Callable[[], object], times: int) -> float:
    """Seconds of one call: the mean of ``times`` calls without a pause between them, after two unmeasured ones."""
    # The first call loads kernels or compiles, and takes the memory that later ones use again.
    for _ in range(2):
        work()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 1e9:.3g} GB" if device.type == "cuda" else "–"


def line(what: str, taken: float, floor: float | None, beside: str) -> list[str]:
    if floor is None:
        return [what, f"{1e3 * taken:.3g} ms", "–", "–", beside]
    return [what, f"{1e3 * taken:.3g} ms", f"{1e3 * floor:.3g} ms", f"{taken / floor:.2f}", beside]
