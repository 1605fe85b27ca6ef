"""A model as ONNX graphs: its text tower, its video tower, and the head that compares or answers.

Needs the extra ``onnx``. Every graph takes any number of items. Words and frames are padded to ``max_words`` and
``max_frames``, and masks tell the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hbi_models.axes import TextBatch, TokenFeatures, TokenLevel
from hbi_models.config_fields import require
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel, counted_levels
from hbi_models.video_qa import VideoQAModel

OPSET = 18
"""Version of ONNX's operators."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch, as a share of the largest number of an output, or of 1 where that is more."""

_PARTS = ("features", "mask", "logits")
"""Of a level, in the order of :class:`TokenLevel`."""

# None is 1, since torch.export makes a constant of an axis of length 1; all differ, so that a fixed length is noticed.
_EXPORTED, _COMPARED = (2, 3), (5, 4)
"""Numbers of texts and of videos that a graph is made from, and compared with."""


@dataclass(frozen=True)
class _Graph:
    """What becomes one file; a module of two arguments, each of which is a tensor or several."""

    name: str
    module: nn.Module
    axes: tuple[str, str]
    """What the first axis of each argument counts."""
    inputs: tuple[str, ...]
    """Names of all tensors of both arguments."""
    outputs: tuple[str, ...]


Argument = Tensor | tuple[Tensor, ...]


class _TextTower(nn.Module):
    def __init__(self, encoder: RetrievalModel, levels: int) -> None:
        super().__init__()
        self.encoder, self.levels = encoder, levels

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        texts = TextBatch(words, mask) if self.encoder.config.tokens is None else TokenFeatures(words, mask)
        return _flat(self.encoder.encode_text(texts, levels=self.levels))


class _VideoTower(nn.Module):
    def __init__(self, encoder: RetrievalModel, levels: int) -> None:
        super().__init__()
        self.encoder, self.levels = encoder, levels

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        has_clip = self.encoder.config.tokens is None
        videos = self.encoder.video_batch(frames, mask) if has_clip else TokenFeatures(frames, mask)
        return _flat(self.encoder.encode_video(videos, levels=self.levels))


class _Head(nn.Module):
    def __init__(self, model: RetrievalModel | VideoQAModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: tuple[Tensor, ...], videos: tuple[Tensor, ...]) -> tuple[Tensor]:
        score = self.model.answer_logits if isinstance(self.model, VideoQAModel) else self.model.similarity
        return (score(_levels(texts), _levels(videos)),)


def _flat(levels: Sequence[TokenLevel]) -> tuple[Tensor, ...]:
    return tuple(part for level in levels for part in (level.features, level.mask, level.logits))


def _levels(parts: Sequence[Tensor]) -> tuple[TokenLevel, ...]:
    return tuple(TokenLevel(*parts[start : start + 3]) for start in range(0, len(parts), 3))


@torch.no_grad()
def export_onnx(model: RetrievalModel | VideoQAModel, folder: Path) -> list[str]:
    """Writes ``text.onnx``, ``video.onnx`` and ``similarity.onnx`` or ``answers.onnx``, weights in files beside them.

    Then each is run beside the model on random input, with other numbers of items than it was made from.

    Args:
        model: In evaluation mode, on the CPU.
        folder: Where to write; it must be there.

    Returns:
        The names of the graphs.

    Raises:
        ModuleNotFoundError: The extra ``onnx`` is not installed.
        ValueError: A part cannot be expressed in ONNX, or its result is not the model's within ``TOLERANCE``.
    """
    # Both are asked for before any work: PyTorch's exporter needs the second one in the middle of it.
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401

    require(not model.training, "the model is in training mode, and a graph is of one in evaluation; call eval() first")
    encoder = model.encoder if isinstance(model, VideoQAModel) else model
    text, video, head = graphs = _graphs(model, encoder)

    def arguments(texts: int, videos: int) -> list[tuple[Argument, Argument]]:
        words = _random_words(encoder, texts)
        # In question answering each question has a video of its own.
        frames = _random_frames(encoder, texts if head.axes[0] == head.axes[1] else videos)
        return [words, frames, (text.module(*words), video.module(*frames))]

    for graph, example, other in zip(graphs, arguments(*_EXPORTED), arguments(*_COMPARED), strict=True):
        _write(graph, example, folder / graph.name)
        _compare(graph, other, folder / graph.name)
    return [graph.name for graph in graphs]


def _graphs(model: RetrievalModel | VideoQAModel, encoder: RetrievalModel) -> tuple[_Graph, _Graph, _Graph]:
    answers = isinstance(model, VideoQAModel)
    levels = LEVELS if answers else LEVELS[: counted_levels(encoder.config.level_rates)]
    texts, videos = ("pairs", "pairs") if answers else ("texts", "videos")
    words, frames = ("token_ids", "frames") if encoder.config.tokens is None else ("words", "frames")
    parts = tuple(f"{level}_{part}" for level in levels for part in _PARTS)
    score = "answers" if answers else "similarity"
    both = tuple(f"{side}_{part}" for side in ("text", "video") for part in parts)
    return (
        _Graph("text.onnx", _TextTower(encoder, len(levels)), (texts, texts), (words, "mask"), parts),
        _Graph("video.onnx", _VideoTower(encoder, len(levels)), (videos, videos), (frames, "mask"), parts),
        _Graph(f"{score}.onnx", _Head(model), (texts, videos), both, (score,)),
    )


def _write(graph: _Graph, arguments: tuple[Argument, Argument], path: Path) -> None:
    dims = {axis: torch.export.Dim(axis) for axis in graph.axes}
    shapes = tuple(
        {0: dims[axis]} if isinstance(argument, Tensor) else tuple({0: dims[axis]} for _ in argument)
        for argument, axis in zip(arguments, graph.axes, strict=True)
    )
    try:
        torch.onnx.export(
            graph.module,
            arguments,
            path,
            input_names=graph.inputs,
            output_names=graph.outputs,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    # What PyTorch's exporter raises comes from four libraries and has no class in common.
    except Exception as error:
        raise ValueError(f"{path.stem} cannot be expressed in ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first cause in one line, without the exporter's advice to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__:.300}"


def _compare(graph: _Graph, arguments: tuple[Argument, Argument], path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [tensor for argument in arguments for tensor in ([argument] if isinstance(argument, Tensor) else argument)]
    feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, given, strict=True)}
    found = session.run(list(graph.outputs), feed)
    for name, ours, expected in zip(graph.outputs, map(torch.from_numpy, found), graph.module(*arguments), strict=True):
        # Masks are outputs, too, and booleans have no difference.
        ours, expected = ours.double(), expected.double()
        difference = (ours - expected).abs().max().item()
        allowed = TOLERANCE * max(1.0, expected.abs().max().item())
        require(
            difference <= allowed,
            f"{path.name} gives a {name} that differs from PyTorch's by {difference:.2g}, and {allowed:.2g} is allowed",
        )


def _random_words(encoder: RetrievalModel, texts: int) -> tuple[Tensor, Tensor]:
    random, mask = torch.Generator().manual_seed(texts), _masks(texts, encoder.config.max_words)
    if encoder.config.tokens is not None:
        return torch.randn(*mask.shape, encoder.config.tokens.word_dim, generator=random), mask
    return torch.randint(encoder.clip.vocabulary_size, mask.shape, generator=random) * mask, mask


def _random_frames(encoder: RetrievalModel, videos: int) -> tuple[Tensor, Tensor]:
    random, mask = torch.Generator().manual_seed(videos), _masks(videos, encoder.config.max_frames)
    if encoder.config.tokens is not None:
        return torch.randn(*mask.shape, encoder.config.tokens.frame_dim, generator=random), mask
    shape = (*mask.shape, 3, encoder.clip.image_size_px, encoder.clip.image_size_px)
    return torch.randint(256, shape, dtype=torch.uint8, generator=random), mask


def _masks(items: int, tokens: int) -> Tensor:
    """Of items of different lengths, from all tokens down to one."""
    return torch.arange(tokens) < torch.linspace(tokens, 1, items).round()[:, None]
