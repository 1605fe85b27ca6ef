"""Interaction labels: CLIP features and the closed-form game for (text, video) pairs.

Texts are captions, or questions where the data has no captions. Each actor holds the model. A call takes the videos of
one shard, encodes each video and each of its texts once, computes the interaction of every pair, and commits the shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from hbi_models.axes import TokenFeatures, TokenLevel
from hbi_models.banzhaf.exact import require_finite
from hbi_models.banzhaf.published import published_labels
from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import RetrievalModel, level_interaction
from hbi_models.similarity import token_cosines, token_weights
from hbi_models.transfer import fetched, sent
from pipelines.models.clip_weights import local_weights
from pipelines.models.encoding import Texts, read_texts, read_videos, text_input, video_input
from pipelines.models.initial_weights import load_checkpoint
from pipelines.recipe.labels import LabelsConfig
from pipelines.resources.device import arithmetic, compute_device, require_precision
from pipelines.resources.sharded_work import SUMMARY
from pipelines.splits import MakeStore, Store
from pipelines.video.frame_store import FrameBatch, FrameStore
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage


@dataclass(frozen=True)
class LabelSettings:
    """All that the labels of a pair depend on, besides its frames and text."""

    model: RetrievalConfig
    labels: LabelsConfig
    seed: int
    clip_weights: Storage | None = None
    """Where the weights lie that a tag names; see :mod:`pipelines.models.clip_weights`."""


def make_label_model(settings: LabelSettings) -> RetrievalModel:
    """The model whose features the labels are computed from: a trained one, or one initialised from the seed."""
    with TemporaryDirectory() as scratch:
        if settings.labels.checkpoint is not None:
            return load_checkpoint(settings.labels.checkpoint, settings.model, Path(scratch))
        # What CLIP does not bring is drawn: every actor must draw the same.
        torch.manual_seed(settings.seed)
        weights = local_weights(settings.clip_weights, Path(scratch))
        return RetrievalModel(as_initialised(settings.model), weights).eval()


def as_initialised(config: RetrievalConfig) -> RetrievalConfig:
    """The settings with all of CLIP trained, whatever the recipe trains: no label depends on that.

    Where a weight needs no gradient, matrix products take another path, which rounds otherwise.
    """
    return replace(config, clip=replace(config.clip, train="all"))


class LabelShard:
    """Labels the videos of one shard; the callable class of the labels stage.

    Args:
        settings: model and kind of labels.
        frames_pool: folder of the shards of frames, or of features.
        pool: where label shards go.
        generation: the pool's generation that they belong to.
        store: reads frames or features.
    """

    def __init__(
        self,
        settings: LabelSettings,
        frames_pool: Storage,
        pool: ShardPool,
        generation: int = 0,
        store: MakeStore = FrameStore,
    ) -> None:
        self._settings, self._frames_pool, self._store = settings, frames_pool, store
        self._pool, self._generation = pool, generation
        self._device = compute_device()
        require_precision(settings.labels.precision, self._device)
        self._model = make_label_model(settings).to(self._device)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Labels ``texts`` under ``key``; frames lie at ``frames_key``, ``shard``, ``row``; returns one summary row."""
        # The store finds its rows by `key`, which is that of the labels until here.
        places = videos.drop_columns(["key"]).rename_columns({"frames_key": "key"})
        store = self._store(self._frames_pool, places)
        blocks = list(self._batches(len(videos)))
        batches = read_videos(self._model, store, blocks, max_frames=self._settings.model.max_frames)
        # Where a batch fails, this ends the thread that makes the next one.
        with closing(batches):
            pairs = zip(blocks, batches, strict=True)
            rows = [row for block, frames in pairs for row in self._label(store, frames, videos, block)]
        size = self._pool.commit(rows, generation=self._generation)
        return pa.Table.from_pylist(
            [{"rows": len(videos), "errors": 0, "units": len(rows), "bytes": size}], schema=SUMMARY
        )

    def _batches(self, count: int) -> Iterator[range]:
        size = self._settings.labels.batch_size
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    # On a generator, PyTorch enters the mode at each step and leaves it at each yield.
    @torch.inference_mode()
    def _label(
        self, store: Store, stored: FrameBatch | TokenFeatures, videos: pa.Table, batch: range
    ) -> Iterator[dict[str, Any]]:
        """Encodes the videos of ``batch`` once, then labels their texts batch by batch."""
        levels, num_frames = self._encode_videos(stored)
        said = [
            (position, index, text)
            for position, video in enumerate(batch)
            for index, text in enumerate(videos.column("texts")[video].as_py())
        ]
        keys, ids = videos.column("key").to_pylist(), videos.column("video_id").to_pylist()
        size = self._settings.labels.batch_size
        for start in range(0, len(said), size):
            part = said[start : start + size]
            texts, num_words = self._encode_texts(store, [(batch[position], text) for position, _, text in part])
            # A video is repeated for each of its texts: from here on, pair n is text n with its own video.
            rows = sent(torch.tensor([position for position, _, _ in part]), self._device)
            frames = levels.map(itemgetter(rows))
            # All in one transfer, since each makes the host wait for the device.
            on_device = (token_cosines(texts, frames), self._interaction(texts, frames), texts.logits, frames.logits)
            cosines, interaction, word_logits, frame_logits = (values.float().numpy() for values in fetched(on_device))
            for pair, (position, index, _) in enumerate(part):
                words, count = num_words[pair], num_frames[position]
                # On a GPU the game does not stop at a logit that is not finite; it shows here, as NaN.
                require_finite(torch.from_numpy(interaction[pair, :words, :count]))
                yield {
                    "video_id": ids[batch[position]],
                    "key": keys[batch[position]],
                    "caption_index": index,
                    "num_words": words,
                    "num_frames": count,
                    "similarity": cosines[pair, :words, :count].flatten(),
                    "word_logits": word_logits[pair, :words],
                    "frame_logits": frame_logits[pair, :count],
                    "interaction": interaction[pair, :words, :count].flatten(),
                }

    def _encode_videos(self, frames: FrameBatch | TokenFeatures) -> tuple[TokenLevel, list[int]]:
        """The finest level of each video, and its number of frames."""
        with arithmetic(self._settings.labels.precision, self._device):
            levels = self._model.encode_video(video_input(self._model, frames), levels=1)
        return levels[0], frames.mask.sum(dim=1).tolist()

    def _encode_texts(self, store: Store, texts: Texts) -> tuple[TokenLevel, list[int]]:
        """The finest level of each text, and its number of words."""
        # As many words as the recipe says, which the model of a checkpoint may not.
        words = read_texts(self._model, store, texts, max_words=self._settings.model.max_words)
        with arithmetic(self._settings.labels.precision, self._device):
            levels = self._model.encode_text(text_input(self._model, words), levels=1)
        return levels[0], words.mask.sum(dim=1).tolist()

    def _interaction(self, texts: TokenLevel, frames: TokenLevel) -> Tensor:
        scale = self._settings.model.game.scale
        if self._settings.labels.kind == "exact":
            return level_interaction(texts, frames, scale=scale)
        # The same subsets for every batch and device, so that a label does not depend on the batch of its pair.
        generator = torch.Generator().manual_seed(self._settings.seed)
        return published_labels(
            token_cosines(texts, frames),
            token_weights(texts),
            token_weights(frames),
            texts.mask,
            frames.mask,
            scale=scale,
            generator=generator,
        )
