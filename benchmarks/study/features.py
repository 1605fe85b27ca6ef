"""Features of a frozen encoder, made once and kept in a file: what heads are trained and tested on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hbi_models.axes import TokenFeatures
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.preprocessing import square_frames
from hbi_models.clip.tokenizer import CaptionTokenizer
from pipelines.progress import Progress
from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import draw_captions
from pipelines.shapes.data_set import clip_truth
from pipelines.shapes.events import draw_script
from pipelines.shapes.rendering import render_clip

TEST_CAPTIONS = 2
"""Captions of each generated test clip. Each is a query."""
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class DataSet:
    """Generated clips and how they are sampled."""

    shapes: ShapesConfig
    frames: int
    """Number of frames of a clip, taken evenly from the first to the last."""


_DEMO = ShapesConfig(train_videos=1600, test_videos=500)
_THREE = ShapesConfig(train_videos=1600, test_videos=500, events=3, seed=1)
DATA_SETS = {
    "demo": DataSet(_DEMO, 8),
    "three events, 12 frames": DataSet(_THREE, 12),
    "three events, 8 frames": DataSet(_THREE, 8),
}
"""The demo's clips; other clips with three events and the published number of frames; the same with the demo's
number."""


@dataclass(frozen=True)
class Split:
    """Features of texts and videos before any adaptation; ``video_of_text`` is the video of each text."""

    words: TokenFeatures
    frames: TokenFeatures
    video_of_text: Tensor
    truth: Sequence[Mapping[str, Any]] = ()
    """For every text, which frames show which of its words, where this is known."""

    @property
    def texts_of_videos(self) -> list[list[int]]:
        """The places of each video's texts."""
        texts: list[list[int]] = [[] for _ in range(len(self.frames.mask))]
        for text, video in enumerate(self.video_of_text.tolist()):
            texts[video].append(text)
        return texts

    def pairs(self, texts: Sequence[int]) -> tuple[TokenFeatures, TokenFeatures]:
        """Some texts with their videos."""
        rows = torch.as_tensor(texts)
        return take(self.words, rows), take(self.frames, self.video_of_text[rows])


def take(tokens: TokenFeatures, rows: Tensor | slice) -> TokenFeatures:
    """Some items, in single precision."""
    return TokenFeatures(tokens.features[rows].float(), tokens.mask[rows])


def write_features(path: Path, splits: Mapping[str, Split], identity: str) -> None:
    """Commits the features of a data set, whole or not at all."""
    tensors = {}
    for name, split in splits.items():
        tensors |= {
            f"{name}.words": split.words.features,
            f"{name}.word_mask": split.words.mask,
            f"{name}.frames": split.frames.features,
            f"{name}.frame_mask": split.frames.mask,
            f"{name}.video_of_text": split.video_of_text,
        }
    truth = {name: list(split.truth) for name, split in splits.items() if split.truth}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        unfinished,
        metadata={"identity": identity, "splits": json.dumps(list(splits)), "truth": json.dumps(truth)},
    )
    unfinished.replace(path)


def identity_of(path: Path) -> str | None:
    """What the features in ``path`` were made of; None without such a file."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as opened:
        return str((opened.metadata() or {}).get("identity"))


def read_features(path: Path) -> dict[str, Split]:
    """What :func:`write_features` wrote; the file is mapped, so that processes share its memory."""
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
        truth = json.loads(metadata["truth"])

        def tokens(name: str, side: str) -> TokenFeatures:
            return TokenFeatures(opened.get_tensor(f"{name}.{side}s"), opened.get_tensor(f"{name}.{side}_mask"))

        return {
            name: Split(
                tokens(name, "word"),
                tokens(name, "frame"),
                opened.get_tensor(f"{name}.video_of_text"),
                truth.get(name, ()),
            )
            for name in json.loads(metadata["splits"])
        }


@torch.inference_mode()
def encode_words(
    clip: ClipBackbone, captions: Sequence[str], max_words: int, dtype: torch.dtype = torch.float32
) -> TokenFeatures:
    """CLIP's features of every word, on the CPU."""
    device = clip.logit_scale.device
    token_ids, mask = map(torch.from_numpy, CaptionTokenizer(max_words, clip.codec)(captions))
    parts = [
        clip.encode_words(ids.to(device), real.to(device)).to("cpu", dtype)
        for ids, real in zip(token_ids.split(4 * _ENCODED_AT_ONCE), mask.split(4 * _ENCODED_AT_ONCE), strict=True)
    ]
    return TokenFeatures(torch.cat(parts), mask)


@torch.inference_mode()
def encode_frames(
    clip: ClipBackbone,
    batches: Iterator[tuple[Tensor, Tensor]],
    advance: Callable[[int], None],
    dtype: torch.dtype = torch.float32,
) -> TokenFeatures:
    """CLIP's features of every frame, on the CPU; batches are uint8 squares and masks, padding is 0."""
    device = clip.logit_scale.device
    features, masks = [], []
    for images, mask in batches:
        # [real frames of all videos, dim]: padding is not encoded.
        real = clip.encode_frames(clip.normalize(images[mask].to(device))).to("cpu", dtype)
        padded = real.new_zeros((*mask.shape, real.shape[-1]))
        padded[mask] = real
        features.append(padded)
        masks.append(mask)
        advance(len(mask))
    return TokenFeatures(torch.cat(features), torch.cat(masks))


def generated_features(clip: ClipBackbone, data: DataSet, *, name: str, max_words: int) -> dict[str, Split]:
    """The splits ``train`` and ``test`` of generated clips, which are drawn and never compressed."""
    config = data.shapes
    train, test = range(config.train_videos), range(config.train_videos, config.train_videos + config.test_videos)
    splits = {}
    with Progress(f"features of {name}", total=len(train) + len(test), unit="clips") as progress:
        for split, numbers, count in (("train", train, config.captions_per_video), ("test", test, TEST_CAPTIONS)):
            captions, owners, truth = [], [], []
            for place, number in enumerate(numbers):
                script = draw_script(config, number)
                drawn = draw_captions(config, script)[:count]
                captions += [caption.text for caption in drawn]
                owners += [place] * len(drawn)
                if split == "test":
                    index = frame_index(script.num_frames, data.frames).tolist()
                    lines = clip_truth(config, script, drawn)["captions"]
                    truth += [{"words": line["words"], "frame_index": index} for line in lines]
            splits[split] = Split(
                encode_words(clip, captions, max_words),
                encode_frames(clip, _drawn(config, numbers, data.frames, clip.image_size_px), progress.advance),
                torch.tensor(owners),
                truth,
            )
    return splits


def frame_index(num_frames: int, count: int) -> np.ndarray:
    """``count`` places, evenly from the first frame to the last."""
    return np.linspace(0, num_frames - 1, count).round().astype(int)


def _drawn(config: ShapesConfig, numbers: Sequence[int], frames: int, size_px: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(numbers), _ENCODED_AT_ONCE):
        clips = []
        for number in numbers[start : start + _ENCODED_AT_ONCE]:
            pictures = render_clip(config, draw_script(config, number))
            clips.append(square_frames(pictures[frame_index(len(pictures), frames)], size_px))
        yield torch.stack(clips), torch.ones(len(clips), frames, dtype=torch.bool)
