"""Training of the retrieval model: batches of (video, caption) pairs and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.backbone import square_size
from hbi_models.clip.loading import read_architecture
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import OptimizerConfig, RetrievalConfig
from hbi_models.losses import retrieval_loss
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.optimizer import clamp_logit_scale_
from hbi_models.retrieval import RetrievalModel
from pipelines.configs import AugmentationConfig, RetrievalTrainingConfig, Split
from pipelines.data.augmentation import augmentation_rng, rand_augment
from pipelines.data.frame_store import as_channels_last, stack_frames
from pipelines.data.splits import SplitView
from pipelines.evaluate.encoding import concatenate, encode_texts, encode_videos
from pipelines.storage import Storage
from pipelines.train.batches import BatchAddress, load_ahead
from pipelines.train.checkpoints import Position
from pipelines.train.collectives import gather_objects, gather_pairs, rank, world_size
from pipelines.train.estimator import load_estimator
from pipelines.train.initial_weights import initialise_from
from pipelines.train.loop import SCORE
from pipelines.train.sampling import Pair, epoch_batches, rank_slice

_VALIDATION_BATCH = 64


class PairBatch(NamedTuple):
    """Matching captions and clips on their way into the model; frames stay uint8 until the device."""

    token_ids: Int[Tensor, "pairs words"]
    word_mask: Bool[Tensor, "pairs words"]
    frames: UInt8[Tensor, "pairs frames 3 height width"]
    frame_mask: Bool[Tensor, "pairs frames"]
    video_ids: list[str]


class PairSource:
    """Makes this rank's part of the batch of any step.

    The batch of a step is a function of (seed, epoch, step) and the augmentation of a clip one of
    (seed, epoch, pass, video): neither depends on the number of ranks or loader processes.
    """

    def __init__(
        self,
        train: SplitView,
        training: RetrievalTrainingConfig,
        model: RetrievalConfig,
        *,
        image_size_px: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._train, self._training, self._model = train, training, model
        self._image_size_px, self._seed = image_size_px, seed
        self._rank, self._world_size = rank, world_size
        self._tokenizer = CaptionTokenizer(model.max_words)
        self._epoch = -1
        self._batches: list[list[Pair]] = []

    def _plan(self, epoch: int) -> list[list[Pair]]:
        if epoch != self._epoch:
            self._batches = epoch_batches(
                self._train.captions_per_video,
                batch_size=self._training.batch_size,
                seed=self._seed,
                epoch=epoch,
                max_captions=self._training.max_captions_per_video,
            )
            self._epoch = epoch
        return self._batches

    def __getitem__(self, address: BatchAddress) -> PairBatch:
        epoch, step = address
        pairs = rank_slice(self._plan(epoch)[step], rank=self._rank, world_size=self._world_size)
        token_ids, word_mask = self._tokenizer([self._train.captions(pair.video)[pair.caption] for pair in pairs])
        ids = [self._train.store.video_ids[pair.video] for pair in pairs]
        if self._training.augmentation.enabled:
            clips = [
                _augmented(
                    self._train.store.decoded(pair.video), self._training.augmentation, self._seed, epoch, pair, name
                )
                for pair, name in zip(pairs, ids, strict=True)
            ]
            frames = stack_frames(clips, image_size_px=self._image_size_px, max_frames=self._model.max_frames)
        else:
            frames = self._train.store.batch(
                [pair.video for pair in pairs], image_size_px=self._image_size_px, max_frames=self._model.max_frames
            )
        return PairBatch(torch.from_numpy(token_ids), torch.from_numpy(word_mask), frames.frames, frames.mask, ids)


def _augmented(
    images: list[Tensor], config: AugmentationConfig, seed: int, epoch: int, pair: Pair, video_id: str
) -> list[Tensor]:
    generator = augmentation_rng(seed, epoch, pair.pass_index, video_id)
    augmented = torch.from_numpy(rand_augment(as_channels_last(images), config, generator))
    return list(rearrange(augmented, "frames height width rgb -> frames rgb height width"))


@dataclass
class RetrievalTask:
    """The retrieval model as the training loop wants it."""

    model_config: RetrievalConfig
    training: RetrievalTrainingConfig
    seed: int
    manifest: Storage
    """Folder of the manifest artifact."""
    frames: Storage
    """Folder of the frames artifact, whose index names the shards."""
    frames_pool: Storage
    """Folder of the frame shards."""
    estimator: Storage | None
    """Checkpoint folder of the teacher, where it is the estimator."""
    loader_processes: int
    steps_per_epoch: Sequence[int]
    """Epochs may differ by a few steps where videos differ in their number of captions."""
    kind: str = field(default="retrieval", init=False)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return self.training.optimizer

    @property
    def epochs(self) -> int:
        return self.training.epochs

    def make_model(self) -> nn.Module:
        model = RetrievalModel(self.model_config)
        with TemporaryDirectory() as scratch:
            if self.training.init_checkpoint is not None:
                initialise_from(self.training.init_checkpoint, model, Path(scratch))
            if model.teacher is not None:
                if self.estimator is None:
                    raise ValueError("model.game.teacher is estimator, and there is no trained estimator to teach")
                model.teacher.load_state_dict(load_estimator(self.estimator, Path(scratch)).state_dict())
        return model

    def steps(self, epoch: int) -> int:
        return self.steps_per_epoch[epoch]

    def batches(self, position: Position) -> Iterator[PairBatch]:
        source = PairSource(
            self._split("train"),
            self.training,
            self.model_config,
            image_size_px=self._image_size_px,
            seed=self.seed,
            rank=rank(),
            world_size=world_size(),
        )
        addresses = [
            (epoch, step)
            for epoch in range(position.epoch, self.epochs)
            for step in range(position.step_in_epoch if epoch == position.epoch else 0, self.steps(epoch))
        ]
        return load_ahead(source, addresses, processes=self.loader_processes, pin_memory=torch.cuda.is_available())

    @cached_property
    def _image_size_px(self) -> int:
        vision = read_architecture(self.model_config.clip.architecture)["vision_cfg"]
        return square_size(vision.get("image_size", 224))

    def _split(self, split: Split) -> SplitView:
        return SplitView(self.manifest, self.frames, self.frames_pool, split)

    @cached_property
    def _validation(self) -> SplitView:
        return self._split("val")

    def loss(self, model: nn.Module, batch: PairBatch, device: torch.device) -> Mapping[str, Tensor]:
        texts = TextBatch(batch.token_ids.to(device), batch.word_mask.to(device))
        pixels = normalize_pixels(batch.frames.to(device, non_blocking=True))
        generator = None
        if self.model_config.merging.tie_break_noise:
            # The loop seeds torch anew in every step, so a restart draws the same noise.
            generator = torch.Generator(device).manual_seed(torch.initial_seed())
        features = gather_pairs(model(texts, VideoBatch(pixels, batch.frame_mask.to(device)), generator))
        loss = retrieval_loss(
            features, _core(model).clip.logit_scale, config=self.model_config.loss, quirks=self.model_config.quirks
        )
        return {"loss": loss.total, **loss.parts}

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale_(_core(model).clip.logit_scale)

    def describe(self, batch: PairBatch) -> str:
        return f"the videos {', '.join(batch.video_ids)}"

    def pairs(self, batch: PairBatch) -> int:
        return len(batch.video_ids)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Retrieval within the validation split, every caption a query; videos are spread over ranks.

        Without a validation split there is nothing to choose by, and the last epoch counts.
        """
        view = self._validation
        if not len(view):
            return {SCORE: 0.0}
        core, own = _core(model), range(rank(), len(view), world_size())
        levels = encode_videos(core, view.store, own, device=device, batch_size=_VALIDATION_BATCH)
        # A rank has nothing to give where there are fewer videos than ranks.
        parts = [part for part in gather_objects((list(own), levels)) if part[0]]
        order = torch.tensor([video for videos, _ in parts for video in videos]).argsort()
        videos = tuple(level.map(lambda tensor: tensor[order]) for level in concatenate([part for _, part in parts]))
        texts, video_of_text, _ = view.texts_of(own)
        words = encode_texts(core, texts, device=device, batch_size=_VALIDATION_BATCH)
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


def _core(model: nn.Module) -> RetrievalModel:
    core = getattr(model, "module", model)
    assert isinstance(core, RetrievalModel)
    return core
