"""What each choice of ``model.clip.train`` costs: parameters, memory and time of a training step.

    python benchmarks/encoders.py                 # the demo's encoder, measured on this machine
    python benchmarks/encoders.py --computed      # ViT-B/32 and ViT-L/14, counted on the meta device

Measured: the whole step of the retrieval model (batch 64, 8 frames, 24 words) with the optimizer; peak of what
autograd keeps between forward and backward, in MB; median of the steps' seconds. Computed: trained parameters; bytes of
gradients and of AdamW's two moments, 12 a trained parameter; multiply-adds of the towers for one pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.adaptation import add_lora, choose_trained
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.configs import ClipConfig, LoraConfig
from hbi_models.clip.loading import build_clip, read_architecture
from hbi_models.configs import GameConfig, LossConfig, Quirks, RetrievalConfig, TemporalConfig
from hbi_models.losses import retrieval_loss
from hbi_models.optimizer import make_optimizer
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel

CHOICES: dict[str, dict[str, Any]] = {
    "all": {"train": "all"},
    "last 2 layers": {"train": "last_layers", "last_layers": 2},
    "LoRA, rank 8": {"train": "lora", "lora": LoraConfig()},
    "none": {"train": "none"},
}
PAIRS, FRAMES, WORDS = 64, 8, 24
WARM, STEPS = 2, 8


def demo_model(choice: dict[str, Any]) -> RetrievalModel:
    """The demo's retrieval model; the exact interaction teaches."""
    torch.manual_seed(0)
    clip = ClipConfig(architecture="shapes-tiny", pretrained=None, freeze_patch_embedding=False, **choice)
    config = RetrievalConfig(
        clip=clip,
        temporal=TemporalConfig(layers=2),
        game=GameConfig(teacher="exact"),
        max_words=WORDS,
        max_frames=FRAMES,
        level_rates=(1, 1, 1),
    )
    model = RetrievalModel(config)
    if clip.train == "lora":
        add_lora(model.clip, clip.lora)
    return model.train()


def demo_batch(size: int) -> tuple[TextBatch, VideoBatch]:
    """Random captions and frames without padding."""
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(1, 49_000, (PAIRS, WORDS), generator=generator)
    pixels = torch.randn(PAIRS, FRAMES, 3, size, size, generator=generator)
    return (
        TextBatch(token_ids, torch.ones_like(token_ids, dtype=torch.bool)),
        VideoBatch(pixels, torch.ones(PAIRS, FRAMES, dtype=torch.bool)),
    )


def measure(choice: dict[str, Any]) -> tuple[int, int, float, float]:
    """Trained parameters of the towers and of the whole model, MB kept for the backward pass, and seconds per step."""
    model = demo_model(choice)
    texts, videos = demo_batch(model.clip.image_size_px)
    optimizer, _ = make_optimizer(model, OptimizerConfig(lr=1e-4, clip_lr_factor=1.0), WARM + STEPS)
    # Autograd keeps weights, too, which take no memory of their own. They are known by their storage, because what is
    # kept may be a view.
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # By storage: what several operations keep is counted once.
            kept[storage.data_ptr()] = storage.size()
        return tensor

    seconds = []
    for step in range(WARM + STEPS):
        started = time.perf_counter()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = model(texts, videos)
            loss = retrieval_loss(features, model.clip.logit_scale, config=LossConfig(), quirks=Quirks()).total
        megabytes = sum(kept.values()) / 1e6
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= WARM:
            seconds.append(time.perf_counter() - started)
    return trained(model.clip), trained(model), megabytes, statistics.median(seconds)


def trained(model: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def counted(architecture: str, choice: dict[str, Any]) -> tuple[int, float, float]:
    """Trained parameters of the towers, GB of gradients and moments, and 10⁹ multiply-adds of a pair and step."""
    with torch.device("meta"):
        backbone = build_clip(read_architecture(architecture))
        config = replace(ClipConfig(architecture=architecture, pretrained=None), **choice)
        choose_trained(backbone, config)
        if config.train == "lora":
            add_lora(backbone, config.lora)
    count = trained(backbone)
    return count, 12 * count / 1e9, multiply_adds(backbone, config) / 1e9


def multiply_adds(backbone: ClipBackbone, config: ClipConfig, frames: int = 12, words: int = 24) -> float:
    """Of the towers' blocks, for one caption and one video: forwards, and for gradients of activations and of weights.

    A block with width d and n tokens takes 12 n d² + 2 n² d forwards and for the gradients of its activations, and
    12 n d² for those of its weights, of LoRA's default projections 4 n d².
    """
    total = 0.0
    image = backbone.image_blocks
    assert image is not None
    patch = backbone.visual.conv1.kernel_size[0]
    tokens = (backbone.image_size_px // patch) ** 2 + 1
    sides = (
        (len(image), backbone.visual.conv1.out_channels, tokens, frames),
        (len(backbone.text_blocks), backbone.text_width, words, 1),
    )
    # Gradients of activations are needed from the loss down to the lowest trained block; LoRA trains in all.
    for blocks, width, length, items in sides:
        linear = items * length * width**2
        block = 12 * linear + 2 * items * length**2 * width
        trained_blocks = {"all": blocks, "lora": blocks, "last_layers": config.last_layers, "none": 0}[config.train]
        weights = (4 if config.train == "lora" else 12) * linear
        total += block * (blocks + trained_blocks) + weights * trained_blocks
    return total


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--computed", action="store_true", help="ViT-B/32 and ViT-L/14, nothing is run")
    if parser.parse_args().computed:
        print("| encoder | trained | parameters | gradients and moments, GB | multiply-adds of a pair, 10⁹ |")
        print("|---|---|---:|---:|---:|")
        for architecture in ("ViT-B-32-quickgelu", "ViT-L-14-quickgelu"):
            for name, choice in CHOICES.items():
                count, gigabytes, work = counted(architecture, choice)
                print(f"| {architecture} | {name} | {count:,} | {gigabytes:.3f} | {work:,.0f} |")
        return
    print("| trained | parameters of the towers | of the model | kept for backward, MB | s per step |")
    print("|---|---:|---:|---:|---:|")
    for name, choice in CHOICES.items():
        towers, everything, megabytes, seconds = measure(choice)
        print(f"| {name} | {towers:,} | {everything:,} | {megabytes:.0f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
