"""Features of words and frames by a frozen encoder: each image and each text of a data set encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.loading import load_clip
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.transfer import fetched, sent
from pipelines.models.clip_weights import local_weights
from pipelines.models.initial_weights import checkpoint_kind, load_checkpoint, load_video_qa_checkpoint
from pipelines.recipe.features import FeaturesConfig, FeatureType
from pipelines.recipe.training import AugmentationConfig
from pipelines.resources.device import arithmetic, compute_device, require_precision
from pipelines.resources.sharded_work import SUMMARY
from pipelines.video.augmentation import Frames, rand_augment, view_rng
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

Tokens = Float[np.ndarray, "tokens dim"]

_TEXTS_PER_VIDEO = 8
"""Texts that are encoded at once for each video of a batch: a text takes a fraction of the time and memory of a video's
frames."""


@dataclass(frozen=True)
class EncoderSettings:
    """All that features depend on, besides frames and texts."""

    model: RetrievalConfig
    answering: VideoQAConfig
    """Settings of the question answering model, in case ``checkpoint`` holds one."""
    checkpoint: str | None
    """The model whose encoder is used; None = CLIP's own weights or, if none are named, weights drawn from ``seed``."""
    features: FeaturesConfig
    augmentation: AugmentationConfig
    """How the augmented copies of a clip, its views, are made."""
    seed: int
    clip_weights: Storage | None = None
    """Where the weights lie that a tag names; see :mod:`pipelines.models.clip_weights`."""


def load_towers(settings: EncoderSettings) -> ClipBackbone:
    """The towers that a training with these settings would freeze.

    Raises:
        FileNotFoundError, ValueError: weights cannot be had, or do not fit.
    """
    config, checkpoint = settings.model, settings.checkpoint
    with TemporaryDirectory() as scratch:
        if checkpoint is None:
            # A training draws the weights of the towers first, from the same seed.
            torch.manual_seed(settings.seed)
            clip = load_clip(config.clip, local_weights(settings.clip_weights, Path(scratch)))
        elif checkpoint_kind(checkpoint, Path(scratch)) == "retrieval":
            clip = load_checkpoint(checkpoint, config, Path(scratch)).clip
        else:
            clip = load_video_qa_checkpoint(checkpoint, settings.answering, Path(scratch)).encoder.clip
    return clip.eval()


class EncodeFeatures:
    """Encodes the videos of one shard and their texts; the callable class of the features stage.

    Args:
        settings: the encoder, and what is made with it.
        frames_pool: folder of the frame shards.
        pool: where the features go.
        generation: the pool's generation that they belong to.
    """

    def __init__(self, settings: EncoderSettings, frames_pool: Storage, pool: ShardPool, generation: int = 0) -> None:
        self._settings, self._frames_pool = settings, frames_pool
        self._pool, self._generation = pool, generation
        self._device = compute_device()
        require_precision(settings.features.precision, self._device)
        self._clip = load_towers(settings).to(self._device)

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        """Reads ``key``, ``texts``, ``max_words``, ``views`` and, of the frames, ``frames_key``, ``shard``, ``row``.

        Raises:
            ValueError: a feature is no number as it is stored.
        """
        # A row's key among the features is not that of its frames, by which the store finds them.
        places = videos.drop_columns(["key"]).rename_columns({"frames_key": "key"})
        frames = self._frames(FrameStore(self._frames_pool, places), videos.column("views").to_pylist())
        texts = self._texts(videos)
        rows = [
            as_row(video, views, said, self._settings.features.dtype)
            for video, views, said in zip(videos.to_pylist(), frames, texts, strict=True)
        ]
        size = self._pool.commit(rows, generation=self._generation)
        units = sum(row["num_frames"] * row["views"] for row in rows)
        return pa.Table.from_pylist([{"rows": len(rows), "errors": 0, "units": units, "bytes": size}], schema=SUMMARY)

    def _texts(self, videos: pa.Table) -> list[list[Tokens]]:
        """Features of the real words of every text of each video."""
        said = [
            (number, place, text, cut)
            for number, video in enumerate(videos.select(["texts", "max_words"]).to_pylist())
            for place, (text, cut) in enumerate(zip(video["texts"], video["max_words"], strict=True))
        ]
        found: list[dict[int, Tokens]] = [{} for _ in range(len(videos))]
        size = _TEXTS_PER_VIDEO * self._settings.features.batch_size
        # A tokenizer cuts at one length, and captions and questions may be cut at different ones.
        for cut in sorted({cut for *_, cut in said}):
            tokenizer, mine = CaptionTokenizer(cut, self._clip.codec), [item for item in said if item[3] == cut]
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                token_ids, mask = (torch.from_numpy(array) for array in tokenizer([text for _, _, text, _ in part]))
                longest = int(mask.sum(dim=1).max())
                token_ids, mask = token_ids[:, :longest], mask[:, :longest]
                with arithmetic(self._settings.features.precision, self._device):
                    words = self._clip.encode_words(sent(token_ids, self._device), sent(mask, self._device))
                (words,) = fetched([words.float()])
                for (number, place, _, _), features, real in zip(part, words, mask, strict=True):
                    found[number][place] = features[real].numpy()
        return [[texts[place] for place in range(len(texts))] for texts in found]

    def _frames(self, store: FrameStore, views: Sequence[int]) -> list[list[Tokens]]:
        """Frame features of every video: of the clip as it is, and of each of its augmented copies."""
        shown = [(video, view) for video, copies in enumerate(views) for view in range(copies + 1)]
        found: list[list[Tokens]] = [[] for _ in views]
        size = self._settings.features.batch_size
        parts = [shown[start : start + size] for start in range(0, len(shown), size)]
        batches = store.batches(
            [[video for video, _ in part] for part in parts],
            image_size_px=self._clip.image_size_px,
            max_frames=self._settings.model.max_frames,
            changes=[
                partial(self._augmented, store, part) if any(view for _, view in part) else None for part in parts
            ],
        )
        with closing(batches):
            for part, batch in zip(parts, batches, strict=True):
                # Which frames are real is known here: only they travel to the device.
                pixels = self._clip.normalize(sent(batch.frames[batch.mask], self._device))
                with arithmetic(self._settings.features.precision, self._device):
                    features = self._clip.encode_frames(pixels)  # [real frames of all videos of the part, dim]
                (features,) = fetched([features.float()])
                # Where the frames of each video end; the last end is no place to cut.
                ends = batch.mask.sum(dim=1).cumsum(dim=0)[:-1].tolist()
                for (video, _), tokens in zip(part, np.split(features.numpy(), ends), strict=True):
                    found[video].append(tokens)
        return found

    def _augmented(self, store: FrameStore, shown: Sequence[tuple[int, int]], row: int, frames: Frames) -> Frames:
        video, view = shown[row]
        if view == 0:
            return frames
        drawn = view_rng(self._settings.seed, view, store.video_ids[video])
        return rand_augment(frames, self._settings.augmentation, drawn)


def as_row(
    video: Mapping[str, Any], views: Sequence[Tokens], texts: Sequence[Tokens], dtype: FeatureType
) -> dict[str, Any]:
    """The row of a pool of features with the frames of each copy of a video, and the words of its texts.

    Raises:
        ValueError: a feature is no number that ``dtype`` can hold.
    """
    frames, words = _stored(views, video["video_id"], dtype), _stored(texts, video["video_id"], dtype)
    return {
        "video_id": video["video_id"],
        "key": video["key"],
        "frames": frames,
        "num_frames": len(views[0]),
        "views": len(views),
        "words": words,
        "texts": video["texts"],
        "max_words": video["max_words"],
        "num_words": list(map(len, texts)),
        "bytes": frames.nbytes + words.nbytes,
    }


def _stored(parts: Sequence[Tokens], video_id: str, dtype: FeatureType) -> NDArray[Any]:
    """The numbers of all tokens as they are stored."""
    numbers = np.concatenate([part.ravel() for part in parts]) if parts else np.empty(0, np.float32)
    # A number that is too large for float16 becomes infinite, and is refused below.
    with np.errstate(over="ignore"):
        numbers = numbers.astype(dtype)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"a feature of {video_id} is no number that {dtype} can hold; set features.dtype to float32, or look for "
            "damaged weights in the encoder"
        )
    return numbers
