"""Token features of many texts and videos: each encoded once, merged once, kept on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import TextBatch, TokenLevel
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel
from hbi_models.transfer import fetched, sent
from hbi_models.zero_shot import ZeroShotModel
from pipelines.video.frame_store import Frames, FrameStore

Levels = tuple[TokenLevel, ...]

Encoder = RetrievalModel | ZeroShotModel
"""What turns texts and videos into levels and compares them; of a pretrained encoder alone there is one level."""


def encode_texts(
    model: Encoder,
    captions: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The first ``num_levels`` levels of ``captions``, in their order, on the CPU."""
    tokenizer = model.tokenizer
    parts = []
    for start in range(0, len(captions), batch_size):
        token_ids, mask = tokenizer(captions[start : start + batch_size])
        # Columns that hold only padding are dropped to save time. They would matter only to a model that reads padding.
        words = mask.shape[1] if model.config.quirks.encode_padding else int(mask.sum(axis=1).max())
        batch = TextBatch(torch.from_numpy(token_ids[:, :words]), torch.from_numpy(mask[:, :words]))
        levels = model.encode_text(batch.to(model.device), levels=num_levels)
        parts.append(on_host(levels))
    return concatenate(parts)


def encode_videos(
    model: Encoder,
    store: FrameStore,
    videos: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
    change: Callable[[str, Frames], Frames] | None = None,
) -> Levels:
    """The first ``num_levels`` levels of the ``videos`` of ``store``, in the given order, on the CPU.

    ``change`` is a function of a video's id and frames; it returns the frames to use instead, before they are cropped.
    """
    blocks = [videos[start : start + batch_size] for start in range(0, len(videos), batch_size)]
    changes = None
    if change is not None:
        changes = [_by_id(change, [store.video_ids[video] for video in block]) for block in blocks]
    batches = store.batches(
        blocks, image_size_px=model.clip.image_size_px, max_frames=model.config.max_frames, changes=changes
    )
    with closing(batches):
        parts = [
            on_host(model.encode_video(model.video_batch(batch.frames, batch.mask), levels=num_levels))
            for batch in batches
        ]
    return concatenate(parts)


def _by_id(change: Callable[[str, Frames], Frames], video_ids: Sequence[str]) -> Callable[[int, Frames], Frames]:
    return lambda place, frames: change(video_ids[place], frames)


def concatenate(parts: Sequence[Levels]) -> Levels:
    """One batch from several; items with fewer tokens are padded."""
    return tuple(
        TokenLevel(
            features=_stack([level.features for level in levels]),
            mask=_stack([level.mask for level in levels]),
            logits=_stack([level.logits for level in levels]),
        )
        for levels in zip(*parts, strict=True)
    )


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    tokens = max(tensor.shape[1] for tensor in tensors)
    # F.pad counts axes from the last one, and features have one axis more than masks.
    return torch.cat([F.pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, tokens - tensor.shape[1])) for tensor in tensors])


def on_host(levels: Levels) -> Levels:
    """The levels on the CPU, fetched in one transfer."""
    tensors: list[Tensor] = []
    for level in levels:
        level.map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
    found = iter(fetched(tensors))
    return tuple(level.map(lambda _: next(found)) for level in levels)


def on_device(levels: Levels, device: torch.device) -> Levels:
    """The levels on ``device``."""
    return tuple(level.map(lambda tensor: sent(tensor, device)) for level in levels)
