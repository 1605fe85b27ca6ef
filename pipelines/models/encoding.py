"""Token features of many texts and videos: each encoded once, merged once, kept on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import TextBatch, TokenFeatures, TokenLevel, VideoBatch
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel
from pipelines.splits import Store
from pipelines.video.token_store import TokenStore

Levels = tuple[TokenLevel, ...]


Texts = Sequence[tuple[int, str]]
"""Texts with the position of each one's video in a store."""


def text_input(model: RetrievalModel, store: Store, texts: Texts, *, max_words: int) -> TextBatch | TokenFeatures:
    """What ``model`` takes of ``texts``, on its device: their tokens, or the features that ``store`` has of them."""
    if isinstance(store, TokenStore):
        return on_device(store.words(texts, max_words=max_words), model.device)
    token_ids, mask = CaptionTokenizer(max_words)([text for _, text in texts])
    return TextBatch(torch.from_numpy(token_ids), torch.from_numpy(mask)).to(model.device)


def video_input(
    model: RetrievalModel, store: Store, videos: Sequence[int], *, max_frames: int
) -> VideoBatch | TokenFeatures:
    """What ``model`` takes of ``videos``, on its device: their pixels, or the features that ``store`` has of them."""
    if isinstance(store, TokenStore):
        return on_device(store.frames(videos, max_frames=max_frames), model.device)
    frames = store.batch(videos, image_size_px=model.clip.image_size_px, max_frames=max_frames)
    return model.video_batch(frames.frames, frames.mask)


def on_device(tokens: TokenFeatures, device: torch.device) -> TokenFeatures:
    """Stored features as a model takes them: in float32, on ``device``."""
    # Half of the bytes travel to a GPU where features are stored in half precision.
    features, mask = (tensor.to(device, non_blocking=True) for tensor in (tokens.features, tokens.mask))
    return TokenFeatures(features.float(), mask)


def encode_texts(
    model: RetrievalModel,
    captions: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The first ``num_levels`` levels of ``captions``, in their order, on the CPU."""
    parts = []
    for start in range(0, len(captions), batch_size):
        parts.append(_encoded(model, model.text_batch(captions[start : start + batch_size]), num_levels))
    return concatenate(parts)


def encode_texts_of(
    model: RetrievalModel,
    store: Store,
    texts: Texts,
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The same of texts of videos in ``store``, which may hold their features."""
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = text_input(model, store, texts[start : start + batch_size], max_words=model.config.max_words)
        parts.append(_encoded(model, batch, num_levels))
    return concatenate(parts)


def _encoded(model: RetrievalModel, batch: TextBatch | TokenFeatures, num_levels: int) -> Levels:
    # Columns that are padding in the whole batch cost time and change nothing.
    words = int(batch.mask.sum(dim=1).max())
    mask = batch.mask[:, :words]
    if isinstance(batch, TokenFeatures):
        batch = TokenFeatures(batch.features[:, :words], mask)
    else:
        batch = TextBatch(batch.token_ids[:, :words], mask)
    return tuple(level.map(_to_cpu) for level in model.encode_text(batch, levels=num_levels))


def encode_videos(
    model: RetrievalModel,
    store: Store,
    videos: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The first ``num_levels`` levels of the ``videos`` of ``store``, in the given order, on the CPU."""
    parts = []
    for start in range(0, len(videos), batch_size):
        batch = video_input(model, store, videos[start : start + batch_size], max_frames=model.config.max_frames)
        parts.append(tuple(level.map(_to_cpu) for level in model.encode_video(batch, levels=num_levels)))
    return concatenate(parts)


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
    # F.pad counts axes from the last one: features have one more than masks.
    return torch.cat([F.pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, tokens - tensor.shape[1])) for tensor in tensors])


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.cpu()
