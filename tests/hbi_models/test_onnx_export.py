"""The graphs compute what the model computes, for other numbers of items than they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hbi_models.axes import TextBatch, TokenFeatures
from hbi_models.configs import GameConfig, Quirks, TokensConfig
from hbi_models.onnx_export import TOLERANCE, _compare, _Graph, _write, export_onnx
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from tests.hbi_models.tiny_model import (
    IMAGE_PX,
    MAX_FRAMES,
    MAX_WORDS,
    NUM_ANSWERS,
    length_mask,
    tiny_config,
    tiny_video_qa_config,
)

pytestmark = pytest.mark.slow

ALL_LEVELS = (1.0, 0.5, 0.25)


def run(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


def score(folder: Path, head: str, words: dict[str, Tensor], frames: dict[str, Tensor]) -> Tensor:
    """What the three graphs in a folder make of texts and videos together."""
    sides = {"text": run(folder / "text.onnx", words), "video": run(folder / "video.onnx", frames)}
    parts = {f"{side}_{name}": value for side, found in sides.items() for name, value in found.items()}
    return run(folder / f"{head}.onnx", parts)[head]


def masks(items: int, tokens: int) -> Tensor:
    return length_mask([1 + 3 * number % tokens for number in range(items)], tokens)


def texts(items: int) -> TextBatch:
    mask = masks(items, MAX_WORDS)
    return TextBatch(torch.randint(50, mask.shape) * mask, mask)


def frames_of(items: int) -> Tensor:
    return torch.randint(256, (items, MAX_FRAMES, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)


@pytest.mark.long
@pytest.mark.parametrize("quirks", [Quirks(), Quirks.published()], ids=["ours", "published"])
@torch.no_grad()
def test_similarities_are_the_models(tmp_path: Path, quirks: Quirks) -> None:
    torch.manual_seed(0)
    model = RetrievalModel(tiny_config(tmp_path, level_rates=ALL_LEVELS, quirks=quirks)).eval()
    assert export_onnx(model, tmp_path) == ["text.onnx", "video.onnx", "similarity.onnx"]
    for num_texts, num_videos in ((1, 1), (7, 3)):
        words, frames, mask = texts(num_texts), frames_of(num_videos), masks(num_videos, MAX_FRAMES)
        found = score(
            tmp_path,
            "similarity",
            {"token_ids": words.token_ids, "mask": words.mask},
            {"frames": frames, "mask": mask},
        )
        expected = model.similarity(model.encode_text(words), model.encode_video(model.video_batch(frames, mask)))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        assert found.shape == (num_texts, num_videos) and (found.numel() == 1 or found.std() > 10 * TOLERANCE)


@pytest.mark.long
@torch.no_grad()
def test_answers_are_the_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VideoQAModel(tiny_video_qa_config(tmp_path)).eval()
    # As they are initialised, all logits are nearly 0.
    for parameter in model.answer_heads.parameters():
        parameter.mul_(20)
    assert export_onnx(model, tmp_path) == ["text.onnx", "video.onnx", "answers.onnx"]
    for pairs in (1, 6):
        words, frames, mask = texts(pairs), frames_of(pairs), masks(pairs, MAX_FRAMES)
        found = score(
            tmp_path, "answers", {"token_ids": words.token_ids, "mask": words.mask}, {"frames": frames, "mask": mask}
        )
        videos = model.encoder.encode_video(model.encoder.video_batch(frames, mask))
        expected = model.answer_logits(model.encoder.encode_text(words), videos)
        assert found.shape == (pairs, NUM_ANSWERS) and expected.std() > 100 * TOLERANCE
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.long
@torch.no_grad()
def test_a_head_on_given_features_takes_them_also_with_coalitions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = TokensConfig(word_dim=9, frame_dim=11, dim=32)
    game = GameConfig(teacher="exact", estimator_channels=4, coalitions=0.5)
    model = RetrievalModel(tiny_config(tmp_path, tokens=tokens, game=game)).eval()
    assert export_onnx(model, tmp_path) == ["text.onnx", "video.onnx", "similarity.onnx"]
    words = TokenFeatures(torch.randn(4, MAX_WORDS, 9), masks(4, MAX_WORDS))
    frames = TokenFeatures(torch.randn(3, MAX_FRAMES, 11), masks(3, MAX_FRAMES))
    found = score(
        tmp_path,
        "similarity",
        {"words": words.features, "mask": words.mask},
        {"frames": frames.features, "mask": frames.mask},
    )
    expected = model.similarity(model.encode_text(words), model.encode_video(frames))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


class Scaled(nn.Module):
    """Two arguments as a graph takes them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor]:
        return (self.factor * (one + other),)


class Impossible(nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor]:
        return (torch.special.airy_ai(one + other),)


def graph_of(module: nn.Module) -> _Graph:
    return _Graph("some.onnx", module, ("items", "items"), ("one", "other"), ("sum",))


def test_what_differs_or_cannot_be_is_refused_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    arguments, path = (torch.ones(2, 4), torch.ones(2, 4)), tmp_path / "some.onnx"
    _write(graph_of(Scaled(1.0)), arguments, path)
    more = (torch.ones(3, 4), torch.ones(3, 4))
    _compare(graph_of(Scaled(1.0)), more, path)
    with pytest.raises(ValueError, match=r"some\.onnx gives a sum that differs from PyTorch's by 0\.001, and 0\.0002"):
        _compare(graph_of(Scaled(1.0005)), more, path)
    with pytest.raises(ValueError, match=r"^some cannot be expressed in ONNX: No ONNX function found.*airy") as refused:
        _write(graph_of(Impossible()), arguments, path)
    assert "\n" not in str(refused.value)


def test_a_model_in_training_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    tokens = TokensConfig(word_dim=9, frame_dim=11, dim=32)
    with pytest.raises(ValueError, match=r"is in training mode.*call eval\(\) first"):
        export_onnx(RetrievalModel(tiny_config(tmp_path, tokens=tokens)), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))
