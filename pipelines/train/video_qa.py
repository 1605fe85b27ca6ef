"""Training of the question answering model: batches of (video, question) pairs with their answers, and their loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.losses import video_qa_loss
from hbi_models.metrics import AnswerMetrics
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.answering import answer_questions
from pipelines.models.initial_weights import initialise_video_qa_from
from pipelines.recipe.training import VideoQATrainingConfig
from pipelines.splits import QuestionView
from pipelines.train.batches import BatchAddress
from pipelines.train.collectives import gather_objects, gather_pairs, rank, together, world_size
from pipelines.train.loop import SCORE
from pipelines.train.pairs import PairBatch, PairSource, PairTask, TokenPairBatch

_VALIDATION_BATCH = 64


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
        """As that of the pairs."""
        return self._source.is_in_memory

    def __getitem__(self, address: BatchAddress) -> QuestionBatch:
        answers = [self._view.questions(pair.video)[pair.text].answer for pair in self._source.pairs(address)]
        labels = torch.tensor([self._vocabulary.label(answer) for answer in answers])
        return QuestionBatch(self._source[address], labels)


@dataclass(kw_only=True)
class VideoQATask(PairTask[QuestionBatch]):
    """The question answering model as the training loop wants it."""

    model_config: VideoQAConfig
    training: VideoQATrainingConfig
    vocabulary: Vocabulary
    init_checkpoint: str | None
    """A question answering or retrieval model to start from."""
    kind: str = field(default="video_qa", init=False)

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
        model = VideoQAModel(self.model_config)
        if self.init_checkpoint is not None:
            with TemporaryDirectory() as scratch:
                initialise_video_qa_from(self.init_checkpoint, model, self.vocabulary, Path(scratch))
        self.install_teacher(model.encoder)
        return model

    def source(self, *, rank: int, world_size: int) -> QuestionSource:
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
        )
        return QuestionSource(view, self.vocabulary, pairs)

    def pair_batch(self, batch: QuestionBatch) -> PairBatch | TokenPairBatch:
        return batch.pairs

    @cached_property
    def _validation(self) -> QuestionView:
        return self.data.questions("val")

    def loss(self, model: nn.Module, batch: QuestionBatch, device: torch.device) -> Mapping[str, Tensor]:
        pairs, labels = batch.pairs, batch.labels.to(device)
        texts, videos = pairs.model_input(self.encoder(model))
        answered = gather_pairs(model(texts, videos, labels, self.draws()))
        loss = video_qa_loss(answered, self.encoder(model).logit_scale, config=self.model_config)
        return {"loss": loss.total, **loss.parts}

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Accuracy over all validation questions, of which those outside the vocabulary are wrong.

        Videos are spread over ranks. Without validation questions there is nothing to choose by,
        and the last epoch counts.
        """
        view = together(lambda: self._validation, device)
        if not len(view):
            return {SCORE: 0.0}
        own = range(rank(), len(view), world_size())
        answers = together(
            lambda: answer_questions(
                self._core(model), view, own, self.vocabulary, device=device, batch_size=_VALIDATION_BATCH
            ),
            device,
        )
        metrics = AnswerMetrics.from_ranks(torch.cat(gather_objects(answers.ranks)))
        named = {f"validation/{name}": value for name, value in metrics.as_dict().items()}
        return {**named, SCORE: metrics.accuracy}
