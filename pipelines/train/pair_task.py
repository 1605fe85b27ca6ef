"""What trainings on (video, text) pairs share: where their data lie, and the base of their tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hbi_models.clip.adaptation import add_lora
from hbi_models.clip.backbone import square_size
from hbi_models.clip.loading import read_architecture
from hbi_models.configs import RetrievalConfig
from hbi_models.draws import BatchDraws
from hbi_models.losses import TrainingLoss
from hbi_models.optimizer import clamp_logit_scale_
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.estimator import load_estimator
from pipelines.recipe.data import Split
from pipelines.resources.device import CPU
from pipelines.splits import MakeStore, QuestionView, SplitView
from pipelines.train.batches import BatchSource, load_ahead
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import gather_pairs, rank, world_size
from pipelines.train.pairs import ALL, PairBatch, TokenPairBatch
from pipelines.video.frame_store import FrameStore
from pipelines.workspace.storage import Storage

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class MemorySource(BatchSource[Batch_co], Protocol[Batch_co]):
    """A source that knows where its data lie."""

    @property
    def is_in_memory(self) -> bool:
        """Whether making a batch is a matter of copying: loading it ahead would cost more."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Where a training on pairs finds what earlier stages made."""

    manifest: Storage
    """Folder of the manifest artifact."""
    frames: Storage
    """Folder of the frames artifact, or of the features artifact: its index names the shards."""
    frames_pool: Storage
    """Folder of these shards."""
    store: MakeStore = FrameStore
    """Reads them."""
    estimator: Storage | None = None
    """Checkpoint folder of the teacher, if that is the estimator."""

    def captions(self, split: Split) -> SplitView:
        """The videos of a split with their captions."""
        return SplitView(self.manifest, self.frames, self.frames_pool, split, store=self.store)

    def questions(self, split: Split, *, answerable_by: Vocabulary | None = None) -> QuestionView:
        """The videos with questions of a split; see ``QuestionView``."""
        return QuestionView(
            self.manifest, self.frames, self.frames_pool, split, store=self.store, answerable_by=answerable_by
        )


@dataclass(kw_only=True)
class PairTask(ABC, Generic[Batch]):
    """The base of trainings on pairs: all that the loop needs, except the model, its loss and its validation."""

    kind: ClassVar[str]
    """What kind of model it trains: the name of its stage and of its sections in a recipe."""
    training: Any
    """Settings of the training, a ``PairTraining``."""
    seed: int
    data: TrainingData
    loader_processes: int
    steps_per_epoch: Sequence[int]
    """Epochs may differ by a few steps where videos differ in their number of texts."""
    clip_weights: Storage | None = None
    """Where the weights lie that a tag names; see :mod:`pipelines.models.clip_weights`."""

    @property
    @abstractmethod
    def encoder_config(self) -> RetrievalConfig:
        """Settings of the model, or of the part of it that encodes texts and videos."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> RetrievalModel:
        """The part of ``model`` that encodes texts and videos, without DistributedDataParallel around it."""

    @abstractmethod
    def source(self, *, rank: int, world_size: int, device: torch.device = CPU) -> MemorySource[Batch]:
        """Makes the part of ``rank`` of the batch of any step, for a model on ``device``."""

    @abstractmethod
    def pair_batch(self, batch: Batch) -> PairBatch | TokenPairBatch:
        """The texts and clips of a batch."""

    @property
    def optimizer_config(self) -> OptimizerConfig:
        optimizer: OptimizerConfig = self.training.optimizer
        return optimizer

    @property
    def epochs(self) -> int:
        return int(self.training.epochs)

    def steps(self, epoch: int) -> int:
        return self.steps_per_epoch[epoch]

    @abstractmethod
    def features(self, model: nn.Module, batch: Batch, rows: slice, device: torch.device, draws: BatchDraws) -> Any:
        """What the loss sees of the pairs at ``rows`` of a batch."""

    @abstractmethod
    def loss_of(self, model: nn.Module, features: Any, logit_scale: Tensor) -> TrainingLoss:
        """The loss of the features of the pairs of all ranks."""

    @abstractmethod
    def figures(self, own: Any, features: Any, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank's features and those of all ranks tell about the game, before the backward pass."""

    def loss(
        self, model: nn.Module, batch: Batch, device: torch.device, *, watch: bool = False
    ) -> Mapping[str, Tensor]:
        own = self.features(model, batch, ALL, device, self.draws())
        features = gather_pairs(own)
        loss = self.loss_of(model, features, self.encoder(model).logit_scale)
        figures = self.figures(own, features, loss.parts) if watch else {}
        return {"loss": loss.total, **loss.parts, **figures}

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[Batch, None, None]:
        # Of all epochs, so that the first batches of an epoch are loaded while the one before ends and validates.
        addresses = [
            (epoch, step)
            for epoch in range(position.epoch, self.epochs)
            for step in range(position.step_in_epoch if epoch == position.epoch else 0, self.steps(epoch))
        ]
        source = self.source(rank=rank(), world_size=world_size(), device=device)
        if source.is_in_memory:
            return (source[address] for address in addresses)
        return load_ahead(source, addresses, processes=self.loader_processes, pin_memory=device.type != "cpu")

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale_(self.encoder(model).logit_scale)

    def row_names(self, batch: Batch) -> list[str]:
        return self.pair_batch(batch).video_ids

    def pairs(self, batch: Batch) -> int:
        return len(self.pair_batch(batch).video_ids)

    @cached_property
    def image_size_px(self) -> int:
        """Side of the model's input."""
        # From the architecture's description, because ``source`` has no model to ask. 224 is open_clip's default.
        vision = read_architecture(self.encoder_config.clip.architecture)["vision_cfg"]
        return square_size(vision.get("image_size", 224))

    def draws(self, *, first: int = 0) -> BatchDraws:
        """What dropout and the tie-break noise draw in this step, for this rank's rows from the ``first`` on."""
        size = int(self.training.batch_size)
        # The loop seeds torch anew in every step, on all ranks alike.
        return BatchDraws(torch.initial_seed(), batch_size=size, first=rank() * (size // world_size()) + first)

    def adapt_encoder(self, encoder: RetrievalModel) -> None:
        """Adds what is trained of CLIP beside its own weights, once these have their initial values."""
        if encoder.config.tokens is None and encoder.config.clip.train == "lora":
            add_lora(encoder.clip, encoder.config.clip.lora)

    def install_teacher(self, encoder: RetrievalModel) -> None:
        """Puts the trained estimator into ``encoder`` if that has an estimator as its teacher.

        Raises:
            ValueError: there is no trained estimator.
        """
        if encoder.teacher is None:
            return
        if self.data.estimator is None:
            raise ValueError("model.game.teacher is estimator, and there is no trained estimator to teach")
        with TemporaryDirectory() as scratch:
            encoder.teacher.load_state_dict(load_estimator(self.data.estimator, Path(scratch)).state_dict())
