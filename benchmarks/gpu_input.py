"""Augmentation, JPEG and video decoding on a GPU: the parts of :mod:`benchmarks.gpu` that work on uint8 pixels."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.decoders import WANTED, images_of, write
from benchmarks.gpu_measures import Limits, Sizes, line, peak, reset_peak, seconds
from benchmarks.rows import ResultsDifferError
from pipelines.recipe.training import AugmentationConfig
from pipelines.video.augmentation import OPERATIONS, augmentation_rng, draw_operations
from pipelines.video.decoder import DecoderChoice
from pipelines.video.decoders import PyAVDecoder, load_decoder, open_decoder
from pipelines.video.device_augmentation import apply_to_clips, as_table, augment_clips
from pipelines.video.device_decoding import decoded_on, joined
from pipelines.video.frame_store import decode_images
from pipelines.video.torchcodec_decoder import torchcodec_problem


def augmentation(device: torch.device, sizes: Sizes, limits: Limits) -> Iterator[list[str]]:
    """The published RandAugment of a batch of clips; every clip draws its own operations.

    Raises:
        ResultsDifferError: a pixel is more than a grey level from the CPU's.
    """
    side, config = sizes.side, AugmentationConfig()
    drawn = [draw_operations(config, augmentation_rng(0, 0, 0, str(clip))) for clip in range(sizes.batch)]
    table = as_table(drawn, config.operations)
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.batch, sizes.frames, 3, side, side)
    # A few clips for the comparison, since it also runs on the CPU, operation by operation.
    few = torch.randint(256, (15, 2, *shape[2:]), generator=generator, dtype=torch.uint8)
    for name, kind in OPERATIONS.items():
        arguments = torch.full((len(few),), float(kind.to_argument(config.magnitude / 10, 1.0)), dtype=torch.float64)
        apart = apply_to_clips(few.to(device), name, arguments).cpu().int() - apply_to_clips(few, name, arguments).int()
        if int(apart.abs().max()) > 1:
            raise ResultsDifferError(f"{name}: {int(apart.abs().max())} grey levels from the CPU's")
    clips = torch.randint(256, shape, device=device, dtype=torch.uint8)
    reset_peak(device)
    taken = seconds(device, lambda: augment_clips(clips, *table), sizes.times)
    # Each operation that is applied reads its clip and writes it.
    floor = 2 * sum(map(len, drawn)) * clips[0].numel() / limits.bytes_per_s
    name = f"RandAugment of {sizes.batch} clips of {sizes.frames} frames"
    yield line(name, taken, floor, f"{sizes.batch / taken:,.0f} clips/s, peak memory {peak(device)}")


def jpeg_decoding(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """The stored images of a batch of clips, 4:3; beside a core of this machine, which says where it is worth it."""
    if problem := torchcodec_problem():
        yield ["JPEG decoding", "–", "–", "–", f"not measured: {problem}"]
        return
    random, different = np.random.default_rng(0), 16
    images = [_picture(random, sizes.side, 4 * sizes.side // 3) for _ in range(different)]
    clips = joined(
        [[images[(clip + frame) % different] for frame in range(sizes.frames)] for clip in range(sizes.batch)],
        max_frames=sizes.frames,
    )
    cpu, every = torch.device("cpu"), slice(None)
    few = joined([images], max_frames=different)
    apart = (
        decoded_on(device, few, every, side_px=sizes.side).cpu().int()
        - decoded_on(cpu, few, every, side_px=sizes.side).int()
    ).abs()
    started = time.perf_counter()
    decode_images(images * sizes.times)
    one_core = different * sizes.times / (time.perf_counter() - started)
    reset_peak(device)
    taken = seconds(device, lambda: decoded_on(device, clips, every, side_px=sizes.side), sizes.times)
    rate = sizes.batch * sizes.frames / taken
    beside = (
        f"{rate:,.0f} images/s, as {rate / one_core:.1f} cores of this machine; up to {int(apart.max())} grey levels "
        f"from the CPU's, {float(apart.float().mean()):.2f} in the mean; peak memory {peak(device)}"
    )
    yield line(f"JPEG decoding of {sizes.batch} clips of {sizes.frames} frames", taken, None, beside)


def video_decoding(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """Twelve frames of a video by NVDEC, in one process, beside PyAV on a core of this machine."""
    choice: DecoderChoice = "nvdec" if device.type == "cuda" else "torchcodec"
    if problem := load_decoder(choice):
        yield ["video decoding", "–", "–", "–", f"not measured: {problem}"]
        return
    for width, height in sizes.videos:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write(path, 4, 50, width=width, height=height)
            decoder = open_decoder(str(path), choice)
            name = f"{WANTED} frames of {width}×{height} by {decoder.name}"
            apart = [
                np.abs(mine.astype(int) - theirs)
                for mine, theirs in zip(images_of(decoder), images_of(PyAVDecoder(str(path))), strict=True)
            ]
            taken = seconds(device, lambda path=str(path): images_of(open_decoder(path, choice)), sizes.times)
            core = seconds(device, lambda path=str(path): images_of(PyAVDecoder(path)), sizes.times)
        beside = (
            f"{1 / taken:,.1f} videos/s, as {core / taken:.1f} cores of this machine; {np.mean(apart):.2f} grey levels "
            f"from PyAV's in the mean, up to {np.max(apart)}"
        )
        yield line(name, taken, None, beside)


def _picture(random: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG image without sharp edges, with some noise."""
    rough = Image.fromarray(random.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = (smooth + random.integers(-6, 7, size=smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
