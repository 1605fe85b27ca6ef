"""The models alone on one CUDA GPU: right first, then how close to the limits of the machine.

    python -m benchmarks.gpu [--minutes 9] [--toy]

Needs neither Ray nor data: PyTorch, open_clip and random weights. The limits are measured, not quoted: a large matrix
product in bfloat16 and float32, and a copy in memory. Each figure stands beside its floor, which is counted from the
floating-point operations and bytes it cannot do without. Parts come in the order of their worth, each printed as it
ends; none begins after the given minutes. Without a CUDA GPU it says so and measures nothing. With --toy every part
runs on the CPU at sizes that measure nothing, to see that it would run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_input import augmentation, jpeg_decoding, video_decoding
from benchmarks.gpu_measures import Limits, Sizes, line, peak, reset_peak, seconds, synchronise
from benchmarks.heads import Shape, make_model, random_features
from benchmarks.labels import random_game
from benchmarks.rows import ResultsDifferError
from hbi_models import similarity
from hbi_models.axes import TextBatch, TokenFeatures, TokenLevel, VideoBatch
from hbi_models.banzhaf.exact import exact_interaction
from hbi_models.clip.configs import ClipConfig
from hbi_models.configs import RetrievalConfig, TemporalConfig
from hbi_models.losses import retrieval_loss
from hbi_models.retrieval import RetrievalModel
from pipelines.train.compiling import compile_parts

TOY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
}
"""An architecture for ``--toy``."""


HEADER = ["what", "measured", "floor", "measured / floor", "beside"]
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Largest norm of an error, relative to the norm of the result."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins after so many")
    parser.add_argument("--toy", action="store_true", help="every part on the CPU, at sizes that measure nothing")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        if options.toy:
            print("Toy sizes on the CPU: these figures measure nothing.\n")
            device, sizes = torch.device("cpu"), toy_sizes(Path(folder))
        elif torch.cuda.is_available():
            device, sizes = torch.device("cuda"), Sizes()
            print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}\n")
        else:
            print("This machine has no CUDA GPU that PyTorch can use: nothing was measured, and nothing is claimed.")
            return 0
        try:
            for part in report(device, sizes, deadline):
                print(part + "\n", flush=True)
        except ResultsDifferError as error:
            print(error)
            return 1
    return 0


def toy_sizes(folder: Path) -> Sizes:
    """A model and numbers small enough for any machine; its architecture is written to ``folder``."""
    architecture = folder / "toy.json"
    architecture.write_text(json.dumps(TOY))
    clip = ClipConfig(architecture=str(architecture), pretrained=None)
    return Sizes(
        steps=(clip, clip),
        temporal=TemporalConfig(layers=1),
        batch=3,
        words=12,
        frames=12,
        long_tokens=12,
        long_items=5,
        product=16,
        dim=32,
        side=24,
        videos=((96, 64),),
        times=1,
        compiler="eager",
    )


def report(device: torch.device, sizes: Sizes, deadline: float = float("inf")) -> Iterator[str]:
    """Tables, as they are ready; no part begins after ``deadline``, on the monotonic clock.

    Raises:
        ResultsDifferError: a module gives other results on the device than on the CPU.
    """
    # TF32 would round what is compared with the CPU in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield shown(["module", "error in float32", "in bfloat16"], check_modules(device, sizes))
    limits = measure_limits(device, sizes)
    yield (
        f"Measured limits: {limits.bf16_flops / 1e12:.3g} TFLOP/s in bfloat16, {limits.fp32_flops / 1e12:.3g} in "
        f"float32, {limits.bytes_per_s / 1e9:.3g} GB/s"
    )
    first, *others = sizes.steps
    parts: list[tuple[str, Callable[[], Iterable[Sequence[str]]]]] = [
        ("training step", lambda: training_step(device, sizes, first, limits, compiled=False)),
        ("compiled training step", lambda: training_step(device, sizes, first, limits, compiled=True)),
        ("exact labels", lambda: exact_labels(device, sizes, limits)),
        ("all pairs", lambda: all_pairs(device, sizes, limits)),
        ("ActivityNet", lambda: long_step(device, sizes)),
        ("augmentation", lambda: augmentation(device, sizes, limits)),
        ("JPEG decoding", lambda: jpeg_decoding(device, sizes)),
        ("video decoding", lambda: video_decoding(device, sizes)),
        *(
            (
                f"training step of {clip.architecture}",
                partial(training_step, device, sizes, clip, limits, compiled=compiled),
            )
            for clip in others
            for compiled in (False, True)
        ),
    ]
    for name, part in parts:
        if time.monotonic() > deadline:
            yield f"{name}: not measured, the time is up"
            continue
        yield shown(HEADER, part())
        # Compiled graphs of one part would keep their memory, and count towards the limit of recompilations in the
        # next.
        torch._dynamo.reset()


def check_modules(device: torch.device, sizes: Sizes) -> list[list[str]]:
    """Each module on the device against the CPU in float32, on the same input.

    Modules that follow a clustering get the CPU's clusters: one token that changes its cluster is no rounding.
    """
    model = RetrievalModel(model_config(sizes, sizes.steps[0])).eval()
    texts, videos = random_batch(model, replace(sizes, batch=4), torch.device("cpu"))
    with torch.no_grad():
        pairs = model(texts, videos)
    words = TokenFeatures(pairs.texts[0].features, texts.mask)
    frames = TokenFeatures(pairs.videos[0].features, videos.mask)
    merge = model.video_merges["action"]
    features, scores = merge.prepare(frames)
    merged = pairs.videos[1].features
    cosines = similarity.token_cosines(pairs.texts[0], pairs.videos[0])
    game = random_game(4, sizes.words, sizes.frames)
    quirks, loss = model.config.quirks, model.config.loss

    def moved(level: TokenLevel, where: torch.device) -> TokenLevel:
        return level.map(lambda tensor: tensor.to(where))

    def loss_on(where: torch.device) -> Tensor:
        on_device = pairs.map(lambda tensor: tensor.to(where))
        return retrieval_loss(on_device, model.clip.logit_scale, config=loss, quirks=quirks).total

    modules: dict[str, Callable[[torch.device], Tensor]] = {
        "image tower": lambda d: model.clip.encode_frames(videos.pixels.flatten(0, 1).to(d)),
        "text tower": lambda d: model.clip.encode_words(texts.token_ids.to(d), texts.mask.to(d)),
        "temporal encoder": lambda d: model.temporal(on(frames, d)).features,
        "word importance": lambda d: model.text_importance["entity"](words.features.to(d)),
        "merge, before clustering": lambda d: merge.prepare(on(frames, d))[0],
        "merge, attention": lambda d: merge.block(merged.to(d), features.to(d), scores.to(d)),
        "interaction predictor": lambda d: model.predictors["entity"](cosines.to(d)),
        "exact labels": lambda d: exact_interaction(*(part.to(d) for part in game)),
        "similarity": lambda d: similarity.level_similarity(moved(pairs.texts[0], d), moved(pairs.videos[0], d)),
        "loss": loss_on,
    }
    rows = []
    with torch.no_grad():
        for name, run in modules.items():
            model.cpu()
            expected = run(torch.device("cpu"))
            model.to(device)
            cells = [name]
            for dtype, tolerance in TOLERANCES.items():
                with precision(device, dtype):
                    error = float((run(device).float().cpu() - expected).norm() / expected.norm())
                if not error <= tolerance:
                    raise ResultsDifferError(f"{name} in {dtype}: error {error:.1e}, allowed are {tolerance:.0e}")
                cells.append(f"{error:.1e}")
            rows.append(cells)
    return rows


def measure_limits(device: torch.device, sizes: Sizes) -> Limits:
    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(sizes.product, sizes.product, device=device, dtype=dtype) for _ in range(2))
        rates.append(2 * sizes.product**3 / seconds(device, lambda a=left, b=right: a @ b, sizes.times))
    source = torch.empty(4 * sizes.product**2, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = seconds(device, lambda: target.copy_(source), sizes.times)
    return Limits(*rates, bytes_per_s=2 * source.numel() / copied)


def training_step(
    device: torch.device, sizes: Sizes, clip: ClipConfig, limits: Limits, *, compiled: bool
) -> Iterator[list[str]]:
    """Whole step, its parts, the copy of its pixels to the device, and its peak memory; bfloat16."""
    torch.manual_seed(0)
    model = RetrievalModel(model_config(sizes, clip)).to(device).train()
    texts, videos = random_batch(model, sizes, device)
    with precision(device, torch.bfloat16), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(texts, videos)
    # The backward pass repeats each product twice; recomputation is not the model's.
    flops = 3 * counter.get_total_flops()
    if compiled:
        compile_parts(model, backend=sizes.compiler)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device.type == "cuda")
    config = model.config
    marks: list[float] = []

    def mark() -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    def step(mark: Callable[[], None] = lambda: None) -> None:
        mark()
        with precision(device, torch.bfloat16):
            encoded = model.clip.encode_frames(videos.pixels.flatten(0, 1))
            frames = TokenFeatures(encoded.unflatten(0, videos.mask.shape), videos.mask)
            mark()
            words = TokenFeatures(model.clip.encode_words(texts.token_ids, texts.mask), texts.mask)
            mark()
            pairs = model.relate(model.text_hierarchy(words), model.video_hierarchy(model.temporal(frames)))
            loss = retrieval_loss(pairs, model.clip.logit_scale, config=config.loss, quirks=config.quirks).total
        mark()
        loss.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad()
        mark()

    reset_peak(device)
    taken = seconds(device, step, sizes.times)
    # Apart from the mean above, because every mark waits for the device, which slows the step down.
    step(mark)
    images = sizes.batch * sizes.frames
    name = f"{clip.architecture}, {'compiled' if compiled else 'eager'}"
    floor = flops / limits.bf16_flops
    yield line(f"{name}: step", taken, floor, f"{images / taken:,.0f} images/s, MFU {floor / taken:.1%}")
    parts = ("image tower", "text tower", "levels and losses", "backward", "optimizer")
    for part, first, last in zip(parts, marks, marks[1:], strict=False):
        yield line(f"{name}: {part}", last - first, None, f"{(last - first) / (marks[-1] - marks[0]):.0%} of a step")
    pixels = torch.empty(videos.pixels.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    copied = seconds(device, lambda: pixels.to(device, non_blocking=True), sizes.times)
    yield line(f"{name}: pixels to the device", copied, None, "hidden" if copied < taken else "longer than the step")
    yield [f"{name}: peak memory", peak(device), "–", "–", "weights, gradients, optimizer and activations"]


def exact_labels(device: torch.device, sizes: Sizes, limits: Limits) -> Iterator[list[str]]:
    for words, frames in ((sizes.words, sizes.frames), (sizes.long_tokens, sizes.long_tokens)):
        game = [part.to(device) for part in random_game(sizes.batch, words, frames)]
        taken = seconds(device, lambda game=game: exact_interaction(*game), sizes.times)
        cells = sizes.batch * words * frames
        # Two products of a square matrix of gains with the cells; similarities in, labels out.
        floor = max(2 * cells * (words + frames) / limits.fp32_flops, 8 * cells / limits.bytes_per_s)
        yield line(
            f"exact labels, {sizes.batch} pairs, {words}×{frames}", taken, floor, f"{sizes.batch / taken:,.0f} pairs/s"
        )


@torch.no_grad()
def all_pairs(device: torch.device, sizes: Sizes, limits: Limits) -> Iterator[list[str]]:
    """In float32, tile by tile as evaluation does it; plain, and with the compiler's kernels for a tile."""
    tokens, items = sizes.long_tokens, sizes.long_items
    generator = torch.Generator(device).manual_seed(0)

    def level() -> TokenLevel:
        features = torch.randn(items, tokens, sizes.dim, device=device, generator=generator)
        return TokenLevel(features, features.new_ones(items, tokens).bool(), features[:, :, 0].contiguous())

    texts, videos = level(), level()
    # The cosines' products; features in, scores out: the cosines themselves need not reach memory.
    floor = max(
        2 * (items * tokens) ** 2 * sizes.dim / limits.fp32_flops,
        4 * (2 * items * tokens * sizes.dim + items**2) / limits.bytes_per_s,
    )
    plain = similarity.similarity_tile
    expected = similarity.level_similarity(texts, videos)
    for name, tile in (("plain", plain), ("compiled", torch.compile(plain, backend=sizes.compiler))):
        # level_similarity looks the function up in its module at each call.
        similarity.similarity_tile = tile
        try:
            reset_peak(device)
            taken = seconds(device, lambda: similarity.level_similarity(texts, videos), 1)
            error = float((similarity.level_similarity(texts, videos) - expected).abs().max())
        finally:
            similarity.similarity_tile = plain
        if not error <= TOLERANCES[torch.float32]:
            raise ResultsDifferError(f"all pairs, {name}: scores {error:.1e} apart")
        yield line(f"all pairs, {items:,}² × {tokens} × {tokens}, {name}", taken, floor, f"peak memory {peak(device)}")


def long_step(device: torch.device, sizes: Sizes) -> Iterator[list[str]]:
    """ActivityNet's sizes above the encoders, forward and backward."""
    shape = Shape(sizes.batch, sizes.batch, sizes.long_tokens, sizes.long_tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), shape, dim=sizes.dim).to(device)
    words, frames = (
        on(random_features(sizes.batch, sizes.long_tokens, dim=sizes.dim, seed=seed), device) for seed in (1, 2)
    )

    def step() -> None:
        with precision(device, torch.bfloat16):
            pairs = model.relate(model.text_hierarchy(words), model.video_hierarchy(frames))
            config = model.config
            loss = retrieval_loss(pairs, model.clip.logit_scale, config=config.loss, quirks=config.quirks).total
        loss.backward()

    reset_peak(device)
    taken = seconds(device, step, sizes.times)
    yield line(f"step above the encoders, batch {shape}", taken, None, f"peak memory {peak(device)}")


def model_config(sizes: Sizes, clip: ClipConfig) -> RetrievalConfig:
    return RetrievalConfig(clip=clip, temporal=sizes.temporal, max_words=sizes.words, max_frames=sizes.frames)


def random_batch(model: RetrievalModel, sizes: Sizes, device: torch.device) -> tuple[TextBatch, VideoBatch]:
    """Captions and videos without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.clip.vocabulary_size, (sizes.batch, sizes.words), generator=generator)
    side = model.clip.image_size_px
    pixels = torch.randn(sizes.batch, sizes.frames, 3, side, side, generator=generator)
    return (
        TextBatch(ids.to(device), torch.ones(ids.shape, dtype=torch.bool, device=device)),
        VideoBatch(pixels.to(device), torch.ones(pixels.shape[:2], dtype=torch.bool, device=device)),
    )


def on(tokens: TokenFeatures, device: torch.device) -> TokenFeatures:
    return TokenFeatures(tokens.features.to(device), tokens.mask.to(device))


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def shown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(" | ".join(cells) for cells in (header, *rows))


if __name__ == "__main__":
    sys.exit(main())
