"""Token features of many texts and videos: each encoded once, merged once, kept on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from hbi_models.axes import TextBatch, TokenFeatures, TokenLevel, VideoBatch, tensors_of, with_tensors
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import LEVELS
from hbi_models.retrieval import RetrievalModel
from hbi_models.transfer import fetched, sent
from hbi_models.zero_shot import ZeroShotModel
from pipelines.splits import Store
from pipelines.video.frame_store import FrameBatch, Frames
from pipelines.video.token_store import TokenStore

Levels = tuple[TokenLevel, ...]

Encoder = RetrievalModel | ZeroShotModel
"""A model that turns texts and videos into levels and compares them. A pretrained encoder alone has one level."""

Texts = Sequence[tuple[int, str]]
"""Texts with the position of each one's video in a store."""


def read_texts(model: RetrievalModel, store: Store, texts: Texts, *, max_words: int) -> TextBatch | TokenFeatures:
    """The input of ``model`` for ``texts``, on the host: their tokens, or their features if ``store`` holds
    features."""
    if isinstance(store, TokenStore):
        return store.words(texts, max_words=max_words)
    model.require_encoder("captions")
    return CaptionTokenizer(max_words, model.clip.codec).batch([text for _, text in texts])


def text_input(model: RetrievalModel, texts: TextBatch | TokenFeatures) -> TextBatch | TokenFeatures:
    """The texts as ``model`` takes them, on its device."""
    if isinstance(texts, TokenFeatures):
        return tokens_on_device(texts, model.device)
    return texts.to(model.device)


def read_videos(
    model: Encoder,
    store: Store,
    blocks: Sequence[Sequence[int]],
    *,
    max_frames: int,
    change: Callable[[str, Frames], Frames] | None = None,
) -> Generator[FrameBatch | TokenFeatures, None, None]:
    """The input of ``model`` for each block of videos, on the host: frames, or features if ``store`` holds features.

    The next block is read while the caller works on one. ``change`` as for :func:`encode_videos`.
    """
    if isinstance(store, TokenStore):
        return store.batches(blocks, max_frames=max_frames)
    if isinstance(model, RetrievalModel):
        model.require_encoder("frames")
    changes = None
    if change is not None:
        changes = [_by_id(change, [store.video_ids[video] for video in block]) for block in blocks]
    return store.batches(blocks, image_size_px=model.clip.image_size_px, max_frames=max_frames, changes=changes)


def video_input(model: RetrievalModel, videos: FrameBatch | TokenFeatures) -> VideoBatch | TokenFeatures:
    """The videos as ``model`` takes them, on its device."""
    if isinstance(videos, TokenFeatures):
        return tokens_on_device(videos, model.device)
    return model.video_batch(videos.frames, videos.mask)


def tokens_on_device(tokens: TokenFeatures, device: torch.device) -> TokenFeatures:
    """Stored features as a model takes them: in float32, on ``device``."""
    # Converted on the device, so that only half of the bytes travel if features are stored in half precision.
    return TokenFeatures(sent(tokens.features, device).float(), sent(tokens.mask, device))


def encode_texts(
    model: Encoder,
    captions: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The first ``num_levels`` levels of ``captions``, in their order, on the CPU."""
    blocks = (captions[start : start + batch_size] for start in range(0, len(captions), batch_size))
    tokenizer = model.tokenizer
    return concatenate([_encoded(model, tokenizer.batch(block), num_levels) for block in blocks])


def encode_texts_of(
    model: RetrievalModel,
    store: Store,
    texts: Texts,
    *,
    device: torch.device,
    batch_size: int,
    num_levels: int = len(LEVELS),
) -> Levels:
    """The same for texts of videos in ``store``, which may hold features."""
    blocks = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
    batches = (read_texts(model, store, block, max_words=model.config.max_words) for block in blocks)
    return concatenate([_encoded(model, batch, num_levels) for batch in batches])


def _encoded(model: Encoder, texts: TextBatch | TokenFeatures, num_levels: int) -> Levels:
    if not model.config.quirks.encode_padding:
        # Columns that hold only padding are dropped to save time. They matter only to a model that reads padding. Real
        # words come first, so their largest number is the width.
        words = int(texts.mask.sum(dim=1).max())
        mask = texts.mask[:, :words]
        if isinstance(texts, TokenFeatures):
            texts = TokenFeatures(texts.features[:, :words], mask)
        else:
            texts = TextBatch(texts.token_ids[:, :words], mask)
    if isinstance(model, ZeroShotModel):
        assert isinstance(texts, TextBatch), "a pretrained encoder alone reads texts"
        return on_host(model.encode_text(texts.to(model.device), levels=num_levels))
    return on_host(model.encode_text(text_input(model, texts), levels=num_levels))


def encode_videos(
    model: Encoder,
    store: Store,
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
    batches = read_videos(model, store, blocks, max_frames=model.config.max_frames, change=change)
    # An error of the model must also end the threads that read the next batches.
    with closing(batches):
        parts = [_encoded_videos(model, batch, num_levels) for batch in batches]
    return concatenate(parts)


def _encoded_videos(model: Encoder, videos: FrameBatch | TokenFeatures, num_levels: int) -> Levels:
    if isinstance(model, ZeroShotModel):
        assert isinstance(videos, FrameBatch), "a pretrained encoder alone reads frames"
        return on_host(model.encode_video(model.video_batch(videos.frames, videos.mask), levels=num_levels))
    return on_host(model.encode_video(video_input(model, videos), levels=num_levels))


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
    found = iter(fetched([tensor for level in levels for tensor in tensors_of(level)]))
    return tuple(with_tensors(level, found) for level in levels)


def on_device(levels: Levels, device: torch.device) -> Levels:
    """The levels on ``device``."""
    return tuple(level.map(lambda tensor: sent(tensor, device)) for level in levels)
