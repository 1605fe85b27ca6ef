"""What trainings on (video, text) pairs share: how batches are made, and the base of their tasks.

Texts are captions or questions. The batch of a step is a function of (seed, epoch, step) and the
augmentation of a clip one of (seed, epoch, pass, video): neither depends on the number of ranks
or loader processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.adaptation import add_lora
from hbi_models.clip.backbone import square_size
from hbi_models.clip.loading import caption_tokenizer, read_architecture
from hbi_models.configs import OptimizerConfig, RetrievalConfig
from hbi_models.draws import BatchDraws
from hbi_models.losses import TrainingLoss
from hbi_models.optimizer import clamp_logit_scale_
from hbi_models.retrieval import RetrievalModel
from hbi_models.transfer import sent
from pipelines.datasets.answers import Vocabulary
from pipelines.models.estimator import load_estimator
from pipelines.recipe.data import Split
from pipelines.recipe.training import AugmentationConfig
from pipelines.resources.device import CPU
from pipelines.splits import QuestionView, SplitView
from pipelines.train.batches import BatchAddress, BatchSource, load_ahead
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import gather_pairs, rank, world_size
from pipelines.train.sampling import Pair, epoch_batches, rank_slice
from pipelines.video.augmentation import Frames, augmentation_rng, draw_operations, rand_augment
from pipelines.video.device_augmentation import as_table, augment_clips
from pipelines.video.frame_store import FrameBatch, FrameStore
from pipelines.workspace.storage import Storage

Batch = TypeVar("Batch")

ALL = slice(None)


class PairBatch(NamedTuple):
    """Matching texts and clips on their way into the model; frames stay uint8 until the device."""

    token_ids: Int[Tensor, "pairs words"]
    word_mask: Bool[Tensor, "pairs words"]
    frames: UInt8[Tensor, "pairs frames 3 height width"]
    frame_mask: Bool[Tensor, "pairs frames"]
    operations: Int[Tensor, "pairs drawn"]
    """Of the augmentation on the model's device, numbers of ``device_augmentation.NAMES``; no columns: no such."""
    arguments: Float[Tensor, "pairs drawn"]
    video_ids: list[str]

    def model_input(self, model: RetrievalModel, rows: slice = ALL) -> tuple[TextBatch, VideoBatch]:
        """The texts and the clips at ``rows`` as ``model`` takes them, on its device."""
        texts = TextBatch(self.token_ids[rows], self.word_mask[rows]).to(model.device)
        frames = self.frames[rows]
        if self.operations.shape[1]:
            frames = augment_clips(sent(frames, model.device), self.operations[rows], self.arguments[rows])
        return texts, model.video_batch(frames, self.frame_mask[rows])


class TextView(Protocol):
    """Videos with frames and texts; a video is addressed by its position."""

    store: FrameStore
    texts_per_video: list[int]

    def texts(self, video: int) -> list[str]:
        """The texts of the video at a position."""
        ...


class PairTraining(Protocol):
    """The settings that trainings on pairs share."""

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def augmentation(self) -> AugmentationConfig: ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Where a training on pairs finds what earlier stages made."""

    manifest: Storage
    """Folder of the manifest artifact."""
    frames: Storage
    """Folder of the frames artifact, whose index names the shards."""
    frames_pool: Storage
    """Folder of the frame shards."""
    estimator: Storage | None = None
    """Checkpoint folder of the teacher, if that is the estimator."""

    def captions(self, split: Split) -> SplitView:
        """The videos of a split with their captions."""
        return SplitView(self.manifest, self.frames, self.frames_pool, split)

    def questions(self, split: Split, *, answerable_by: Vocabulary | None = None) -> QuestionView:
        """The videos with questions of a split; see ``QuestionView``."""
        return QuestionView(self.manifest, self.frames, self.frames_pool, split, answerable_by=answerable_by)


class PairSource:
    """Makes this rank's part of the batch of any step.

    Args:
        view: videos and texts to train on.
        training: size of the global batch, and augmentation.
        model: how many words and frames the model takes.
        max_texts: texts of a video used per epoch; None = all.
        image_size_px: side of the model's input.
        seed: seed of the run.
        rank: which part of the batch.
        world_size: into how many parts it is cut.
        device: where the model is.
    """

    def __init__(
        self,
        view: TextView,
        training: PairTraining,
        model: RetrievalConfig,
        *,
        max_texts: int | None,
        image_size_px: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device = CPU,
    ) -> None:
        self._augments_there = augments_on(device, training.augmentation)
        self._view, self._training, self._model = view, training, model
        self._max_texts, self._image_size_px, self._seed = max_texts, image_size_px, seed
        self._rank, self._world_size = rank, world_size
        self._tokenizer = caption_tokenizer(model)
        self._epochs: dict[int, list[list[Pair]]] = {}

    def pairs(self, address: BatchAddress) -> Sequence[Pair]:
        """The pairs of this rank's part of a batch."""
        epoch, step = address
        if epoch not in self._epochs:
            # At the end of an epoch the next one is read ahead.
            self._epochs = {earlier: batches for earlier, batches in self._epochs.items() if earlier == epoch - 1}
            self._epochs[epoch] = epoch_batches(
                self._view.texts_per_video,
                batch_size=self._training.batch_size,
                seed=self._seed,
                epoch=epoch,
                max_texts=self._max_texts,
            )
        return rank_slice(self._epochs[epoch][step], rank=self._rank, world_size=self._world_size)

    def read_ahead(self, address: BatchAddress) -> None:
        """Begins to read the frames of a later batch."""
        self._view.store.read_ahead([pair.video for pair in self.pairs(address)])

    def __getitem__(self, address: BatchAddress) -> PairBatch:
        pairs = self.pairs(address)
        token_ids, word_mask = self._tokenizer([self._view.texts(pair.video)[pair.text] for pair in pairs])
        ids = [self._view.store.video_ids[pair.video] for pair in pairs]
        frames = self._frames(address[0], pairs)
        operations, arguments = self._drawn_for_device(address[0], pairs)
        texts = torch.from_numpy(token_ids), torch.from_numpy(word_mask)
        return PairBatch(*texts, frames.frames, frames.mask, operations, arguments, ids)

    def _drawn_for_device(self, epoch: int, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        config = self._training.augmentation
        if not self._augments_there:
            return as_table([[] for _ in pairs], 0)
        return as_table([draw_operations(config, self._generator(epoch, pair)) for pair in pairs], config.operations)

    def _generator(self, epoch: int, pair: Pair) -> np.random.Generator:
        return augmentation_rng(self._seed, epoch, pair.pass_index, self._view.store.video_ids[pair.video])

    def _frames(self, epoch: int, pairs: Sequence[Pair]) -> FrameBatch:
        store, config = self._view.store, self._training.augmentation

        def augment(row: int, frames: Frames) -> Frames:
            return rand_augment(frames, config, self._generator(epoch, pairs[row]))

        return store.batch(
            [pair.video for pair in pairs],
            image_size_px=self._image_size_px,
            max_frames=self._model.max_frames,
            change=augment if config.enabled and not self._augments_there else None,
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
    def source(self, *, rank: int, world_size: int, device: torch.device = CPU) -> BatchSource[Batch]:
        """Makes the part of ``rank`` of the batch of any step, for a model on ``device``."""

    @abstractmethod
    def pair_batch(self, batch: Batch) -> PairBatch:
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
        loss = self.loss_of(model, features, self.encoder(model).clip.logit_scale)
        figures = self.figures(own, features, loss.parts) if watch else {}
        return {"loss": loss.total, **loss.parts, **figures}

    def batches(self, position: Position, device: torch.device = CPU) -> Generator[Batch, None, None]:
        addresses = [
            (epoch, step)
            for epoch in range(position.epoch, self.epochs)
            for step in range(position.step_in_epoch if epoch == position.epoch else 0, self.steps(epoch))
        ]
        return load_ahead(
            self.source(rank=rank(), world_size=world_size(), device=device),
            addresses,
            processes=self.loader_processes,
            pin_memory=device.type != "cpu",
        )

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale_(self.encoder(model).clip.logit_scale)

    def row_names(self, batch: Batch) -> list[str]:
        return self.pair_batch(batch).video_ids

    def pairs(self, batch: Batch) -> int:
        return len(self.pair_batch(batch).video_ids)

    @cached_property
    def image_size_px(self) -> int:
        """Side of the model's input."""
        vision = read_architecture(self.encoder_config.clip.architecture)["vision_cfg"]
        return square_size(vision.get("image_size", 224))

    def draws(self, *, first: int = 0) -> BatchDraws:
        """What dropout and the tie-break noise draw in this step, for this rank's rows from the ``first`` on."""
        size = int(self.training.batch_size)
        # The loop seeds torch anew in every step, on all ranks alike.
        return BatchDraws(torch.initial_seed(), batch_size=size, first=rank() * (size // world_size()) + first)

    def adapt_encoder(self, encoder: RetrievalModel) -> None:
        """Adds what is trained of CLIP beside its own weights, once these have their initial values."""
        if encoder.config.clip.train == "lora":
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


def augments_on(device: torch.device, config: AugmentationConfig) -> bool:
    """Whether clips are augmented on the model's ``device``, and not in the loader.

    Raises:
        ValueError: they are to be augmented on a GPU, and the model is on the CPU.
    """
    if not config.enabled or config.device == "cpu":
        return False
    if config.device == "gpu" and device.type == "cpu":
        raise ValueError(
            "augmentation.device is gpu, and this training runs on CPUs; set it to auto or cpu, or give it GPUs"
        )
    return device.type != "cpu"


def steps_of_epochs(
    texts_per_video: Sequence[int], *, batch_size: int, seed: int, epochs: int, max_texts: int | None
) -> list[int]:
    """Number of batches of each epoch.

    Raises:
        ValueError: there are fewer videos with texts than ``batch_size``.
    """
    return [
        len(epoch_batches(texts_per_video, batch_size=batch_size, seed=seed, epoch=epoch, max_texts=max_texts))
        for epoch in range(epochs)
    ]
