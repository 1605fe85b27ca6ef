"""Training of the retrieval model: batches of (video, caption) pairs and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hbi_models.axes import PairFeatures
from hbi_models.configs import RetrievalConfig
from hbi_models.draws import BatchDraws
from hbi_models.losses import TrainingLoss, retrieval_loss
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.retrieval import RetrievalModel, counted_levels
from pipelines.models.clip_weights import local_weights
from pipelines.models.encoding import Levels, concatenate, encode_texts_of, encode_videos, on_device
from pipelines.models.initial_weights import initialise_from
from pipelines.models.weights import without_pretraining
from pipelines.recipe.training import RetrievalTrainingConfig
from pipelines.resources.device import CPU
from pipelines.splits import SplitView, positions_of_half
from pipelines.train.collapse import game_figures
from pipelines.train.collectives import gather_objects, rank, together, world_size
from pipelines.train.loop import SCORE
from pipelines.train.pair_task import PairTask
from pipelines.train.pairs import PairBatch, PairSource, TokenPairBatch


@dataclass(kw_only=True)
class RetrievalTask(PairTask[PairBatch | TokenPairBatch]):
    """The training of the retrieval model, for the training loop."""

    kind = "retrieval"
    model_config: RetrievalConfig
    training: RetrievalTrainingConfig

    @property
    def encoder_config(self) -> RetrievalConfig:
        return self.model_config

    def encoder(self, model: nn.Module) -> RetrievalModel:
        core = getattr(model, "module", model)
        assert isinstance(core, RetrievalModel)
        return core

    def make_model(self) -> nn.Module:
        start = self.training.init_checkpoint
        with TemporaryDirectory() as scratch:
            if start is None:
                model = RetrievalModel(self.model_config, local_weights(self.clip_weights, Path(scratch)))
            else:
                model = RetrievalModel(without_pretraining(self.model_config))
                initialise_from(start, model, Path(scratch))
        self.install_teacher(model)
        self.adapt_encoder(model)
        return model

    def source(self, *, rank: int, world_size: int, device: torch.device = CPU) -> PairSource:
        return PairSource(
            self.data.captions("train"),
            self.training,
            self.model_config,
            max_texts=self.training.max_captions_per_video,
            image_size_px=self.image_size_px,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )

    def pair_batch(self, batch: PairBatch | TokenPairBatch) -> PairBatch | TokenPairBatch:
        return batch

    @cached_property
    def _validation(self) -> SplitView:
        return self.data.captions("val")

    def features(
        self,
        model: nn.Module,
        batch: PairBatch | TokenPairBatch,
        rows: slice,
        device: torch.device,
        draws: BatchDraws,
    ) -> PairFeatures:
        features: PairFeatures = model(*batch.model_input(self.encoder(model), rows), draws)
        return features

    def loss_of(self, model: nn.Module, features: PairFeatures, logit_scale: Tensor) -> TrainingLoss:
        config = self.model_config
        return retrieval_loss(features, logit_scale, config=config.loss, quirks=config.quirks, game=config.game)

    def figures(self, own: PairFeatures, features: PairFeatures, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return game_figures(own, features, parts, skl=self.model_config.loss.skl)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Retrieval within the validation split, every caption a query; videos are spread over ranks.

        Without a validation split the last epoch is chosen.
        """
        view = together(lambda: self._validation)
        validated = positions_of_half(view.store.video_ids, self.training.validation_half)
        if not validated:
            return {SCORE: 0.0}
        core, own = self.encoder(model), validated[rank() :: world_size()]
        encode: dict[str, Any] = {"device": device, "batch_size": self.training.validation_batch_size}
        encode["num_levels"] = counted_levels(core.config.level_rates)
        levels = together(lambda: encode_videos(core, view.store, own, **encode))
        # A rank has nothing to give where there are fewer videos than ranks.
        parts = [part for part in gather_objects((list(own), levels)) if part[0]]
        # In the order of ``validated``, whose positions rise: column i of the similarities is its i-th video.
        order = torch.tensor([video for videos, _ in parts for video in videos]).argsort()
        videos = tuple(level.map(lambda tensor: tensor[order]) for level in concatenate([part for _, part in parts]))
        # Every rank holds all videos now, and scores the captions of its own: some rows of [texts, videos].
        texts, video_of_text, _ = view.texts_of(own)

        def ranked() -> tuple[Tensor, list[int]] | None:
            words = encode_texts_of(core, view.store, list(zip(video_of_text, texts, strict=True)), **encode)
            return (self._similarity(core, words, videos, device), video_of_text) if texts else None

        own_rows = together(ranked)
        rows = [part for part in gather_objects(own_rows) if part is not None]
        similarity = torch.cat([part for part, _ in rows])
        column_of = {video: column for column, video in enumerate(validated)}
        columns = torch.tensor([column_of[video] for _, owners in rows for video in owners])
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

    @staticmethod
    def _similarity(core: RetrievalModel, texts: Levels, videos: Levels, device: torch.device) -> Tensor:
        """Of all texts with all videos, on the CPU; computed on ``device``, where the host would take seconds."""
        return core.similarity(on_device(texts, device), on_device(videos, device)).cpu()
