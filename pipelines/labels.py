"""Interaction labels: CLIP features and the closed-form game for (text, video) pairs.

Texts are captions, or questions where the data has no captions. One actor holds the model; a call
takes the videos of one shard, encodes each video and each of its texts once, plays the game of
every pair, and commits the shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.banzhaf.published import published_labels
from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import RetrievalModel, level_interaction
from hbi_models.similarity import token_cosines, token_weights
from pipelines.models.encoding import Texts, text_input, video_input
from pipelines.models.weights import load_model
from pipelines.recipe.labels import LabelsConfig
from pipelines.resources.device import compute_device
from pipelines.resources.sharded_work import SUMMARY
from pipelines.splits import MakeStore, Store
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage


@dataclass(frozen=True)
class LabelSettings:
    """All that the labels of a pair depend on, besides its frames and text."""

    model: RetrievalConfig
    labels: LabelsConfig
    seed: int


def make_label_model(settings: LabelSettings) -> RetrievalModel:
    """The model whose features play the game: a trained one, or one as initialised from the seed."""
    if settings.labels.checkpoint is not None:
        with TemporaryDirectory() as scratch:
            return load_model(Storage(settings.labels.checkpoint), Path(scratch))
    torch.manual_seed(settings.seed)
    return RetrievalModel(settings.model).eval()


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
        self._model = make_label_model(settings).to(self._device)

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Labels ``texts`` under ``key``; frames lie at ``frames_key``, ``shard``, ``row``; returns one summary row."""
        places = videos.drop_columns(["key"]).rename_columns({"frames_key": "key"})
        store = self._store(self._frames_pool, places)
        rows = [row for batch in self._batches(len(videos)) for row in self._label(store, videos, batch)]
        size = self._pool.commit(rows, generation=self._generation)
        return pa.Table.from_pylist(
            [{"rows": len(videos), "errors": 0, "units": len(rows), "bytes": size}], schema=SUMMARY
        )

    def _batches(self, count: int) -> Iterator[range]:
        size = self._settings.labels.batch_size
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    @torch.inference_mode()
    def _label(self, store: Store, videos: pa.Table, batch: range) -> Iterator[dict[str, Any]]:
        """Encodes the videos of ``batch`` once, then labels their texts batch by batch."""
        levels = self._encode_videos(store, batch)
        said = [
            (position, index, text)
            for position, video in enumerate(batch)
            for index, text in enumerate(videos.column("texts")[video].as_py())
        ]
        keys, ids = videos.column("key").to_pylist(), videos.column("video_id").to_pylist()
        size = self._settings.labels.batch_size
        for start in range(0, len(said), size):
            part = said[start : start + size]
            texts = self._encode_texts(store, [(batch[position], text) for position, _, text in part])
            rows = torch.tensor([position for position, _, _ in part], device=self._device)
            frames = levels.map(itemgetter(rows))
            cosines, interaction = token_cosines(texts, frames), self._interaction(texts, frames)
            for pair, (position, index, _) in enumerate(part):
                words, count = int(texts.mask[pair].sum()), int(frames.mask[pair].sum())
                yield {
                    "video_id": ids[batch[position]],
                    "key": keys[batch[position]],
                    "caption_index": index,
                    "num_words": words,
                    "num_frames": count,
                    "similarity": _flat(cosines[pair, :words, :count]),
                    "word_logits": _flat(texts.logits[pair, :words]),
                    "frame_logits": _flat(frames.logits[pair, :count]),
                    "interaction": _flat(interaction[pair, :words, :count]),
                }

    def _encode_videos(self, store: Store, batch: range) -> TokenLevel:
        frames = video_input(self._model, store, batch, max_frames=self._settings.model.max_frames)
        with self._arithmetic():
            levels = self._model.encode_video(frames, levels=1)
        return levels[0]

    def _encode_texts(self, store: Store, texts: Texts) -> TokenLevel:
        # As many words as the recipe says, which the model of a checkpoint may not.
        words = text_input(self._model, store, texts, max_words=self._settings.model.max_words)
        with self._arithmetic():
            levels = self._model.encode_text(words, levels=1)
        return levels[0]

    def _arithmetic(self) -> torch.autocast:
        bfloat16 = self._settings.labels.precision == "bfloat16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def _interaction(self, texts: TokenLevel, frames: TokenLevel) -> Tensor:
        scale = self._settings.model.game.similarity_scale
        if self._settings.labels.kind == "exact":
            return level_interaction(texts, frames, scale=scale)
        # The same subsets for every batch and on every device: a label does not depend on where its pair stands.
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


def _flat(values: Tensor) -> Any:
    return values.flatten().float().cpu().numpy()
