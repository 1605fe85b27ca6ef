"""Training of the question answering model: batches of (video, question) pairs with their answers, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hbi_models.axes import AnsweredPairs
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.draws import BatchDraws
from hbi_models.losses import TrainingLoss, video_qa_loss
from hbi_models.metrics import AnswerMetrics
from hbi_models.retrieval import RetrievalModel
from hbi_models.transfer import sent
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.answering import answer_questions
from pipelines.models.clip_weights import local_weights
from pipelines.models.initial_weights import initialise_video_qa_from
from pipelines.models.weights import without_pretraining
from pipelines.recipe.training import VideoQATrainingConfig
from pipelines.resources.device import CPU
from pipelines.splits import QuestionView, positions_of_half
from pipelines.train.batches import BatchAddress
from pipelines.train.collapse import game_figures
from pipelines.train.collectives import gather_objects, rank, together, world_size
from pipelines.train.loop import SCORE
from pipelines.train.pair_task import PairTask
from pipelines.train.pairs import PairBatch, PairSource, TokenPairBatch


class QuestionBatch(NamedTuple):
    """Questions with their clips, and the class ids of their answers."""

    pairs: PairBatch | TokenPairBatch
    labels: Int[Tensor, " pairs"]


class QuestionSource:
    """Adds the answers to the pairs of a source."""

    def __init__(self, view: QuestionView, vocabulary: Vocabulary, source: PairSource) -> None:
        self._view, self._vocabulary, self._source = view, vocabulary, source

    @property
    def is_in_memory(self) -> bool:
        """Whether the source of the pairs is."""
        return self._source.is_in_memory

    def __getitem__(self, address: BatchAddress) -> QuestionBatch:
        answers = [self._view.questions(pair.video)[pair.text].answer for pair in self._source.pairs(address)]
        labels = torch.tensor([self._vocabulary.label(answer) for answer in answers])
        return QuestionBatch(self._source[address], labels)

    def read_ahead(self, address: BatchAddress) -> None:
        """Begins to read the frames of a later batch."""
        self._source.read_ahead(address)


@dataclass(kw_only=True)
class VideoQATask(PairTask[QuestionBatch]):
    """The training of the question answering model, for the training loop."""

    kind = "video_qa"
    model_config: VideoQAConfig
    training: VideoQATrainingConfig
    vocabulary: Vocabulary
    init_checkpoint: str | None
    """A question answering or retrieval model to start from."""

    @property
    def encoder_config(self) -> RetrievalConfig:
        return self.model_config.encoder

    def encoder(self, model: nn.Module) -> RetrievalModel:
        return self._core(model).encoder

    def _core(self, model: nn.Module) -> VideoQAModel:
        core = getattr(model, "module", model)
        assert isinstance(core, VideoQAModel)
        return core

    def make_model(self) -> nn.Module:
        config = self.model_config
        with TemporaryDirectory() as scratch:
            if self.init_checkpoint is None:
                model = VideoQAModel(config, local_weights(self.clip_weights, Path(scratch)))
            else:
                model = VideoQAModel(replace(config, encoder=without_pretraining(config.encoder)))
                initialise_video_qa_from(self.init_checkpoint, model, self.vocabulary, Path(scratch))
        self.install_teacher(model.encoder)
        self.adapt_encoder(model.encoder)
        return model

    def source(self, *, rank: int, world_size: int, device: torch.device = CPU) -> QuestionSource:
        view = self.data.questions("train", answerable_by=self.vocabulary)
        pairs = PairSource(
            view,
            self.training,
            self.encoder_config,
            max_texts=self.training.max_questions_per_video,
            image_size_px=self.image_size_px,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            device=device,
        )
        return QuestionSource(view, self.vocabulary, pairs)

    def pair_batch(self, batch: QuestionBatch) -> PairBatch | TokenPairBatch:
        return batch.pairs

    @cached_property
    def _validation(self) -> QuestionView:
        return self.data.questions("val")

    def features(
        self, model: nn.Module, batch: QuestionBatch, rows: slice, device: torch.device, draws: BatchDraws
    ) -> AnsweredPairs:
        labels = sent(batch.labels[rows], device)
        answered: AnsweredPairs = model(*batch.pairs.model_input(self.encoder(model), rows), labels, draws)
        return answered

    def loss_of(self, model: nn.Module, features: AnsweredPairs, logit_scale: Tensor) -> TrainingLoss:
        return video_qa_loss(features, logit_scale, config=self.model_config)

    def figures(self, own: AnsweredPairs, features: AnsweredPairs, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return game_figures(own.pairs, features.pairs, parts, skl=self.model_config.encoder.loss.skl)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Accuracy over all validation questions; those with an answer outside the vocabulary count as wrong.

        Videos are spread over ranks. Without validation questions the last epoch is chosen.
        """
        view = together(lambda: self._validation)
        validated = positions_of_half(view.store.video_ids, self.training.validation_half)
        if not validated:
            return {SCORE: 0.0}
        own = validated[rank() :: world_size()]
        answers = together(
            lambda: answer_questions(
                self._core(model),
                view,
                own,
                self.vocabulary,
                device=device,
                batch_size=self.training.validation_batch_size,
            )
        )
        metrics = AnswerMetrics.from_ranks(torch.cat(gather_objects(answers.ranks)))
        named = {f"validation/{name}": value for name, value in metrics.as_dict().items()}
        return {**named, SCORE: metrics.accuracy}
