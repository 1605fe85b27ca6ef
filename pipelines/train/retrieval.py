"""Training of the retrieval model: batches of (video, caption) pairs and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hbi_models.configs import RetrievalConfig
from hbi_models.losses import retrieval_loss
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.retrieval import RetrievalModel, counted_levels
from pipelines.models.encoding import concatenate, encode_texts_of, encode_videos
from pipelines.models.initial_weights import initialise_from
from pipelines.recipe.training import RetrievalTrainingConfig
from pipelines.splits import SplitView
from pipelines.train.collectives import gather_objects, gather_pairs, rank, together, world_size
from pipelines.train.loop import SCORE
from pipelines.train.pairs import PairBatch, PairSource, PairTask, TokenPairBatch

_VALIDATION_BATCH = 64


@dataclass(kw_only=True)
class RetrievalTask(PairTask[PairBatch | TokenPairBatch]):
    """The retrieval model as the training loop wants it."""

    model_config: RetrievalConfig
    training: RetrievalTrainingConfig
    kind: str = field(default="retrieval", init=False)

    @property
    def encoder_config(self) -> RetrievalConfig:
        return self.model_config

    def encoder(self, model: nn.Module) -> RetrievalModel:
        core = getattr(model, "module", model)
        assert isinstance(core, RetrievalModel)
        return core

    def make_model(self) -> nn.Module:
        model = RetrievalModel(self.model_config)
        if self.training.init_checkpoint is not None:
            with TemporaryDirectory() as scratch:
                initialise_from(self.training.init_checkpoint, model, Path(scratch))
        self.install_teacher(model)
        return model

    def source(self, *, rank: int, world_size: int) -> PairSource:
        return PairSource(
            self.data.captions("train"),
            self.training,
            self.model_config,
            max_texts=self.training.max_captions_per_video,
            image_size_px=self.image_size_px,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def pair_batch(self, batch: PairBatch | TokenPairBatch) -> PairBatch | TokenPairBatch:
        return batch

    @cached_property
    def _validation(self) -> SplitView:
        return self.data.captions("val")

    def loss(self, model: nn.Module, batch: PairBatch | TokenPairBatch, device: torch.device) -> Mapping[str, Tensor]:
        texts, videos = batch.model_input(self.encoder(model))
        features = gather_pairs(model(texts, videos, self.draws()))
        loss = retrieval_loss(
            features,
            self.encoder(model).logit_scale,
            config=self.model_config.loss,
            quirks=self.model_config.quirks,
        )
        return {"loss": loss.total, **loss.parts}

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Retrieval within the validation split, every caption a query; videos are spread over ranks.

        Without a validation split there is nothing to choose by, and the last epoch counts.
        """
        view = together(lambda: self._validation, device)
        if not len(view):
            return {SCORE: 0.0}
        core, own = self.encoder(model), range(rank(), len(view), world_size())
        encode: dict[str, Any] = {"device": device, "batch_size": _VALIDATION_BATCH}
        encode["num_levels"] = counted_levels(core.config.level_rates)
        levels = together(lambda: encode_videos(core, view.store, own, **encode), device)
        # A rank has nothing to give where there are fewer videos than ranks.
        parts = [part for part in gather_objects((list(own), levels)) if part[0]]
        order = torch.tensor([video for videos, _ in parts for video in videos]).argsort()
        videos = tuple(level.map(lambda tensor: tensor[order]) for level in concatenate([part for _, part in parts]))
        texts, video_of_text, _ = view.texts_of(own)
        words = encode_texts_of(core, view.store, list(zip(video_of_text, texts, strict=True)), **encode)
        own_rows = (core.similarity(words, videos), video_of_text) if texts else None
        rows = [part for part in gather_objects(own_rows) if part is not None]
        similarity = torch.cat([part for part, _ in rows])
        columns = torch.tensor([video for _, owners in rows for video in owners])
        metrics = {
            "text_to_video": RetrievalMetrics.from_ranks(text_to_video_ranks(similarity, columns)),
            "video_to_text": RetrievalMetrics.from_ranks(video_to_text_ranks(similarity, columns)),
        }
        score = sum(direction.recall_at_1 for direction in metrics.values()) / len(metrics)
        named = {
            f"validation/{direction}/{name}": value
            for direction, values in metrics.items()
            for name, value in values.as_dict().items()
        }
        return {**named, SCORE: score}
