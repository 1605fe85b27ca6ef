"""What trainings on (video, text) pairs share: how batches are made, and the base of their tasks.

Texts are captions or questions. The batch of a step is a function of (seed, epoch, step) and the
augmentation of a clip one of (seed, epoch, pass, video): neither depends on the number of ranks
or loader processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.backbone import square_size
from hbi_models.clip.loading import read_architecture
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import OptimizerConfig, RetrievalConfig
from hbi_models.draws import BatchDraws
from hbi_models.optimizer import clamp_logit_scale_
from hbi_models.retrieval import RetrievalModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.estimator import load_estimator
from pipelines.recipe.data import Split
from pipelines.recipe.training import AugmentationConfig
from pipelines.resources.device import compute_device
from pipelines.splits import QuestionView, SplitView
from pipelines.train.batches import BatchAddress, BatchSource, load_ahead
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import rank, world_size
from pipelines.train.sampling import Pair, epoch_batches, rank_slice
from pipelines.video.augmentation import Frames, augmentation_rng, rand_augment
from pipelines.video.frame_store import FrameBatch, FrameStore
from pipelines.workspace.storage import Storage

Batch = TypeVar("Batch")


class PairBatch(NamedTuple):
    """Matching texts and clips on their way into the model; frames stay uint8 until the device."""

    token_ids: Int[Tensor, "pairs words"]
    word_mask: Bool[Tensor, "pairs words"]
    frames: UInt8[Tensor, "pairs frames 3 height width"]
    frame_mask: Bool[Tensor, "pairs frames"]
    video_ids: list[str]

    def model_input(self, model: RetrievalModel) -> tuple[TextBatch, VideoBatch]:
        """The texts and the clips as ``model`` takes them, on its device."""
        texts = TextBatch(self.token_ids, self.word_mask).to(model.device)
        return texts, model.video_batch(self.frames, self.frame_mask)


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
    ) -> None:
        self._view, self._training, self._model = view, training, model
        self._max_texts, self._image_size_px, self._seed = max_texts, image_size_px, seed
        self._rank, self._world_size = rank, world_size
        self._tokenizer = CaptionTokenizer(model.max_words)
        self._epoch = -1
        self._batches: list[list[Pair]] = []

    def pairs(self, address: BatchAddress) -> Sequence[Pair]:
        """The pairs of this rank's part of a batch."""
        epoch, step = address
        if epoch != self._epoch:
            self._batches = epoch_batches(
                self._view.texts_per_video,
                batch_size=self._training.batch_size,
                seed=self._seed,
                epoch=epoch,
                max_texts=self._max_texts,
            )
            self._epoch = epoch
        return rank_slice(self._batches[step], rank=self._rank, world_size=self._world_size)

    def __getitem__(self, address: BatchAddress) -> PairBatch:
        pairs = self.pairs(address)
        token_ids, word_mask = self._tokenizer([self._view.texts(pair.video)[pair.text] for pair in pairs])
        ids = [self._view.store.video_ids[pair.video] for pair in pairs]
        frames = self._frames(address[0], pairs)
        return PairBatch(torch.from_numpy(token_ids), torch.from_numpy(word_mask), frames.frames, frames.mask, ids)

    def _frames(self, epoch: int, pairs: Sequence[Pair]) -> FrameBatch:
        store, config = self._view.store, self._training.augmentation

        def augment(row: int, frames: Frames) -> Frames:
            pair = pairs[row]
            generator = augmentation_rng(self._seed, epoch, pair.pass_index, store.video_ids[pair.video])
            return rand_augment(frames, config, generator)

        return store.batch(
            [pair.video for pair in pairs],
            image_size_px=self._image_size_px,
            max_frames=self._model.max_frames,
            change=augment if config.enabled else None,
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
    def source(self, *, rank: int, world_size: int) -> BatchSource[Batch]:
        """Makes the part of ``rank`` of the batch of any step."""

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

    def batches(self, position: Position) -> Generator[Batch, None, None]:
        addresses = [
            (epoch, step)
            for epoch in range(position.epoch, self.epochs)
            for step in range(position.step_in_epoch if epoch == position.epoch else 0, self.steps(epoch))
        ]
        return load_ahead(
            self.source(rank=rank(), world_size=world_size()),
            addresses,
            processes=self.loader_processes,
            pin_memory=compute_device().type == "cuda",
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

    def draws(self) -> BatchDraws:
        """The random draws of dropout and the tie-break noise in this step, for this rank's rows."""
        size = int(self.training.batch_size)
        # The loop seeds torch in every step, with the same seed on all ranks.
        return BatchDraws(torch.initial_seed(), batch_size=size, first=rank() * (size // world_size()))

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
