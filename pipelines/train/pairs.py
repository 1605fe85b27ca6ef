"""How trainings on (video, text) pairs make their batches.

Texts are captions or questions. The batch of a step is a function of (seed, epoch, step) and the
augmentation of a clip one of (seed, epoch, pass, video): neither depends on the number of ranks
or loader processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hbi_models.axes import TextBatch, TokenFeatures, VideoBatch
from hbi_models.clip.loading import caption_tokenizer
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.configs import Quirks, RetrievalConfig
from hbi_models.optimizer_config import OptimizerConfig
from hbi_models.retrieval import RetrievalModel
from hbi_models.token_merging import count_clusters
from hbi_models.transfer import sent
from pipelines.models.encoding import tokens_on_device
from pipelines.recipe.training import AugmentationConfig, ImageDecoding
from pipelines.resources.device import CPU
from pipelines.splits import Store
from pipelines.train.batches import BatchAddress
from pipelines.train.sampling import Pair, epoch_batches, rank_slice
from pipelines.video.augmentation import Frames, augmentation_rng, draw_operations, rand_augment
from pipelines.video.device_augmentation import as_table, augment_clips
from pipelines.video.device_decoding import EncodedClips, decoded_on, joined
from pipelines.video.frame_store import FrameStore
from pipelines.video.token_store import TokenStore

ALL = slice(None)


class PairBatch(NamedTuple):
    """Matching texts and clips on their way into the model; frames stay uint8 until the device."""

    token_ids: Int[Tensor, "pairs words"]
    word_mask: Bool[Tensor, "pairs words"]
    frames: UInt8[Tensor, "pairs frames 3 height width"] | EncodedClips
    """Pixels, or images that the model's device decodes."""
    frame_mask: Bool[Tensor, "pairs frames"]
    operations: Int[Tensor, "pairs drawn"]
    """Of the augmentation on the model's device, numbers of ``device_augmentation.NAMES``; without it, no columns."""
    arguments: Float[Tensor, "pairs drawn"]
    video_ids: list[str]

    def model_input(self, model: RetrievalModel, rows: slice = ALL) -> tuple[TextBatch, VideoBatch]:
        """The texts and the clips at ``rows`` as ``model`` takes them, on its device."""
        texts = TextBatch(self.token_ids[rows], self.word_mask[rows]).to(model.device)
        if isinstance(self.frames, EncodedClips):
            frames = decoded_on(model.device, self.frames, rows, side_px=model.clip.image_size_px)
        else:
            frames = self.frames[rows]
        if self.operations.shape[1]:
            frames = augment_clips(sent(frames, model.device), self.operations[rows], self.arguments[rows])
        return texts, model.video_batch(frames, self.frame_mask[rows])


class TokenPairBatch(NamedTuple):
    """Features of matching texts and clips on their way into the model, as they are stored until the device."""

    words: Float[Tensor, "pairs words dim"]
    word_mask: Bool[Tensor, "pairs words"]
    frames: Float[Tensor, "pairs frames dim"]
    frame_mask: Bool[Tensor, "pairs frames"]
    video_ids: list[str]

    def model_input(self, model: RetrievalModel, rows: slice = ALL) -> tuple[TokenFeatures, TokenFeatures]:
        """The words and the frames at ``rows`` as ``model`` takes them, on its device."""
        words = TokenFeatures(self.words[rows], self.word_mask[rows])
        frames = TokenFeatures(self.frames[rows], self.frame_mask[rows])
        return tokens_on_device(words, model.device), tokens_on_device(frames, model.device)


class TextView(Protocol):
    """Videos with frames and texts; a video is addressed by its position."""

    store: Store
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

    @property
    def image_decoding(self) -> ImageDecoding: ...

    @property
    def compiled(self) -> bool: ...


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
        self._decodes_there = decodes_on(device, training.image_decoding)
        self._view, self._training, self._model = view, training, model
        self._max_texts, self._image_size_px, self._seed = max_texts, image_size_px, seed
        self._rank, self._world_size, self._device = rank, world_size, device
        self._epochs: dict[int, list[list[Pair]]] = {}

    @cached_property
    def _tokenizer(self) -> CaptionTokenizer:
        # Features need none.
        return caption_tokenizer(self._model)

    @property
    def is_in_memory(self) -> bool:
        """Whether the source reads features that fit into memory."""
        return isinstance(self._view.store, TokenStore) and self._view.store.fits_memory

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
        """Begins to read the frames, or the features, of a later batch."""
        self._view.store.read_ahead([pair.video for pair in self.pairs(address)])

    def __getitem__(self, address: BatchAddress) -> PairBatch | TokenPairBatch:
        pairs, store = self.pairs(address), self._view.store
        # Text i belongs to clip i: the loss takes the diagonal for the matches.
        ids = [store.video_ids[pair.video] for pair in pairs]
        texts = [self._view.texts(pair.video)[pair.text] for pair in pairs]
        if isinstance(store, TokenStore):
            videos = [pair.video for pair in pairs]
            words = store.words(list(zip(videos, texts, strict=True)), max_words=self._model.max_words)
            views = self._views(store, address[0], pairs)
            frames = store.frames(videos, max_frames=self._model.max_frames, views=views)
            width = self._width(words)
            return TokenPairBatch(words.features[:, :width], words.mask[:, :width], frames.features, frames.mask, ids)
        tokens = self._tokenizer.batch(texts)
        pictures, real = self._frames(store, address[0], pairs)
        operations, arguments = self._drawn_for_device(address[0], pairs)
        return PairBatch(tokens.token_ids, tokens.mask, pictures, real, operations, arguments, ids)

    def _drawn_for_device(self, epoch: int, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        config = self._training.augmentation
        if not self._augments_there:
            return as_table([[] for _ in pairs], 0)
        return as_table([draw_operations(config, self._generator(epoch, pair)) for pair in pairs], config.operations)

    def _generator(self, epoch: int, pair: Pair) -> np.random.Generator:
        return augmentation_rng(self._seed, epoch, pair.pass_index, self._view.store.video_ids[pair.video])

    def _width(self, words: TokenFeatures) -> int:
        """How many words a batch needs: what is padding in all of its texts costs time, and changes nothing.

        But parts of several ranks must be alike, a GPU wants batches of one size and compiled networks one width, noise
        is drawn for all words, and the published slips see padding.
        """
        model = self._model
        alike = self._world_size > 1 or self._device.type != "cpu" or self._training.compiled
        if alike or model.merging.tie_break_noise or model.quirks != Quirks():
            return model.max_words
        # No fewer than there are clusters at the next level, whose number must not change.
        clusters = count_clusters(model.max_words, model.merging.text_rates[0])
        return max(clusters, int(words.mask.sum(dim=1).max()))

    def _views(self, store: TokenStore, epoch: int, pairs: Sequence[Pair]) -> list[int] | None:
        """Which augmented copy of each clip is shown; None = the clips as they are."""
        if not self._training.augmentation.enabled:
            return None
        # View 0 is the clip as it is, which is shown only where it has no copies.
        counts = store.views([pair.video for pair in pairs])
        drawn = (self._generator(epoch, pair) for pair in pairs)
        return [int(rng.integers(count)) + 1 if count else 0 for rng, count in zip(drawn, counts, strict=True)]

    def _frames(
        self, store: FrameStore, epoch: int, pairs: Sequence[Pair]
    ) -> tuple[UInt8[Tensor, "pairs frames 3 height width"] | EncodedClips, Bool[Tensor, "pairs frames"]]:
        """Frames, and which are real."""
        config, videos, max_frames = self._training.augmentation, [pair.video for pair in pairs], self._model.max_frames
        if self._decodes_there:
            images = joined(store.jpegs(videos, max_frames=max_frames), max_frames=max_frames)
            return images, images.sizes > 0  # [pairs, frames]

        def augment(row: int, frames: Frames) -> Frames:
            return rand_augment(frames, config, self._generator(epoch, pairs[row]))

        batch = store.batch(
            videos,
            image_size_px=self._image_size_px,
            max_frames=max_frames,
            change=augment if config.enabled and not self._augments_there else None,
        )
        return batch.frames, batch.mask


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


def decodes_on(device: torch.device, decoding: ImageDecoding) -> bool:
    """Whether images are decoded on the model's ``device``, and not in the loader.

    Raises:
        ValueError: they are to be decoded on a GPU, and the model is on the CPU, or torchcodec cannot be used.
    """
    if decoding == "cpu":
        return False
    if device.type == "cpu":
        raise ValueError("image_decoding is gpu, and this training runs on CPUs; set it to cpu, or give it GPUs")
    from pipelines.video.torchcodec_decoder import torchcodec_problem  # loads PyAV

    if problem := torchcodec_problem():
        raise ValueError(f"image_decoding is gpu, and {problem}")
    return True


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
