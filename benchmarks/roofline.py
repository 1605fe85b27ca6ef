"""What a training step would take on GPUs that are not here: computed from its operations and bytes, not measured.

    python -m benchmarks.roofline

A step of the retrieval model (128 pairs of 24 words and 12 frames of 224×224 pixels, forward, backward and AdamW in
bfloat16) runs on PyTorch's meta device, which knows shapes and computes nothing. Of every operation its floating-point
operations and the bytes of its tensors are counted. ``no fusion``: each operation takes the longer of its arithmetic
at the card's peak and its traffic at the card's bandwidth, one after the other. ``whole fusion``: all arithmetic at the
peak, or the weights' and the optimizer's traffic, whichever takes longer. A real step lies between or above.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import GameConfig, RetrievalConfig, TemporalConfig
from hbi_models.losses import retrieval_loss
from hbi_models.retrieval import RetrievalModel
from pipelines.tables import table

META = torch.device("meta")
PAIRS, WORDS, FRAMES = 128, 24, 12
UTILISATION = 0.45
"""Of a card's peak, for the clips a second that its processors have to deliver."""
CLIPS_PER_CORE = {"RandAugment in the loader": 40, "on the device": 190}
"""Clips of 12 frames a second that one core (AMD EPYC, Zen 4) delivers, by benchmarks/training_input.py."""


@dataclass(frozen=True)
class Card:
    """Peaks that its maker states: dense bfloat16 products with float32 sums, and memory."""

    name: str
    flops: float
    bytes_per_s: float


CARDS = (
    Card("A10G", 70e12, 600e9),
    Card("A100 80 GB", 312e12, 2039e9),
    Card("H100 SXM", 989e12, 3350e9),
)


@dataclass(frozen=True)
class Work:
    """Of one operation."""

    flops: float
    bytes: float


class Counter(TorchDispatchMode):
    """Notes the work of every operation; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        is_view = any(part.alias_info and not part.alias_info.is_write for part in func._schema.returns)
        # An alias of an input that is returned unwritten is a view, which moves no bytes.
        if not is_view and func is not torch.ops.aten.detach.default:
            tensors = [item for item in tree_flatten((args, kwargs, result))[0] if isinstance(item, Tensor)]
            count = flop_registry.get(func._overloadpacket)
            # flop_registry knows products, convolutions and attention; all else counts by its bytes alone.
            flops = float(count(*args, **kwargs, out_val=result)) if count else 0.0
            self.done.append(Work(flops, float(sum(map(bytes_of, tensors)))))
        return result


def bytes_of(tensor: Tensor) -> int:
    """Of a tensor as autocast makes it: floating-point numbers take two bytes. Few of them take four in truth."""
    return tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())


def step(config: RetrievalConfig, *, pairs: int, words: int, frames: int) -> tuple[list[Work], float]:
    """The work of a forward and backward pass, operation by operation; and the traffic of weights and optimizer."""
    model = RetrievalModel(config).to(META).train()
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    side = model.clip.image_size_px
    texts = TextBatch(
        torch.zeros(pairs, words, dtype=torch.int64, device=META),
        torch.ones(pairs, words, dtype=torch.bool, device=META),
    )
    videos = VideoBatch(
        torch.zeros(pairs, frames, 3, side, side, device=META),
        torch.ones(pairs, frames, dtype=torch.bool, device=META),
    )
    # The meta device knows no autocast; what its types would be, bytes_of says.
    with Counter() as counter, patch.object(torch, "autocast", lambda **_: nullcontext()):
        features = model(texts, videos)
        loss = retrieval_loss(features, model.clip.logit_scale, config=config.loss, quirks=config.quirks)
        loss.total.backward()  # type: ignore[no-untyped-call]
    # AdamW reads weight, gradient and two moments, and writes all but the gradient; autocast copies the weights.
    return counter.done, parameters * (7 * 4 + 4 + 2)


def times(work: Sequence[Work], traffic: float, card: Card) -> tuple[float, float]:
    """Seconds of a step without fusion, and of one with everything fused."""
    apart = sum(max(part.flops / card.flops, part.bytes / card.bytes_per_s) for part in work)
    flops = sum(part.flops for part in work)
    return apart + traffic / card.bytes_per_s, max(flops / card.flops, traffic / card.bytes_per_s)


def main() -> int:
    rows, needs = [], []
    for architecture in ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu"):
        config = RetrievalConfig(
            clip=ClipConfig(architecture=architecture, pretrained=None),
            temporal=TemporalConfig(),
            game=GameConfig(teacher="estimator"),
            max_words=WORDS,
            max_frames=FRAMES,
        )
        work, traffic = step(config, pairs=PAIRS, words=WORDS, frames=FRAMES)
        flops = sum(part.flops for part in work)
        for card in CARDS:
            apart, fused = times(work, traffic, card)
            name = architecture.removesuffix("-quickgelu")
            rows.append(
                [
                    f"{name}, {card.name}",
                    f"{flops / 1e12:.1f} TFLOP",
                    f"{1e3 * apart:.0f} ms",
                    f"{1e3 * fused:.0f} ms",
                    f"{flops / card.flops / apart:.0%}",
                ]
            )
            clips = PAIRS * UTILISATION * card.flops / flops
            cores = [f"{clips / rate:.1f}" for rate in CLIPS_PER_CORE.values()]
            needs.append([f"{name}, {card.name}", f"{clips:,.0f}", *cores])
    print("Computed, not measured.\n")
    print(table(["step", "arithmetic", "no fusion", "whole fusion", "MFU without fusion"], rows))
    print()
    print(table(["step", f"clips/s at {UTILISATION:.0%} MFU", *(f"cores: {name}" for name in CLIPS_PER_CORE)], needs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
