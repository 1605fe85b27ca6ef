"""Trained models as MLflow serves them: tensors in, similarities or logits of answers out."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from hbi_models.axes import TextBatch
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.folder import kind_of_model, vocabulary_of
from pipelines.models.weights import load_model, load_video_qa
from pipelines.workspace.storage import Storage


def served_model(folder: Storage) -> tuple[nn.Module, ModelSignature]:
    """The trained model in ``folder`` as MLflow logs it, with its signature."""
    with TemporaryDirectory() as name:
        scratch = Path(name)
        if kind_of_model(folder) == "retrieval":
            scorer = RetrievalScorer(load_model(folder, scratch))
            return scorer, _signature(scorer.model, outputs=-1)  # a column per video
        answerer = VideoAnswerer(load_video_qa(folder, scratch), vocabulary_of(folder.uri))
        return answerer, _signature(answerer.model.encoder, outputs=len(answerer.answers))


def requirements() -> list[str]:
    """What a logged model is loaded with, in the versions of this process.

    MLflow would load the model in a new process to find out, which takes longer than a small training.
    """
    found = []
    # On a cluster the project's code may come with the job instead of being installed.
    for package in ("hbi-on-ray", "mlflow", "open_clip_torch", "torch"):
        with suppress(PackageNotFoundError):
            found.append(f"{package}=={version(package)}")
    return found


class RetrievalScorer(nn.Module):
    """Scores every caption against every video."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token_ids: Int[Tensor, "texts words"],
        word_mask: Bool[Tensor, "texts words"],
        frames: UInt8[Tensor, "videos frames 3 height width"],
        frame_mask: Bool[Tensor, "videos frames"],
    ) -> Float[Tensor, "texts videos"]:
        """The retrieval score of every text with every video."""
        texts = self.model.encode_text(TextBatch(token_ids, word_mask))
        videos = self.model.encode_video(self.model.video_batch(frames, frame_mask))
        return self.model.similarity(texts, videos)


class VideoAnswerer(nn.Module):
    """Answers one question about each video; ``answers`` names the classes in their order."""

    def __init__(self, model: VideoQAModel, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model, self.answers = model, vocabulary.answers

    def forward(
        self,
        token_ids: Int[Tensor, "pairs words"],
        word_mask: Bool[Tensor, "pairs words"],
        frames: UInt8[Tensor, "pairs frames 3 height width"],
        frame_mask: Bool[Tensor, "pairs frames"],
    ) -> Float[Tensor, "pairs answers"]:
        """The logit of every answer to each question."""
        encoder = self.model.encoder
        questions = encoder.encode_text(TextBatch(token_ids, word_mask))
        videos = encoder.encode_video(encoder.video_batch(frames, frame_mask))
        return self.model.answer_logits(questions, videos)


def _signature(model: RetrievalModel, *, outputs: int) -> ModelSignature:
    """Names, types and shapes of the arguments and of the result."""
    words, frames, size = model.config.max_words, model.config.max_frames, model.clip.image_size_px
    inputs = Schema(
        [
            TensorSpec(np.dtype(np.int64), (-1, words), "token_ids"),
            TensorSpec(np.dtype(bool), (-1, words), "word_mask"),
            TensorSpec(np.dtype(np.uint8), (-1, frames, 3, size, size), "frames"),
            TensorSpec(np.dtype(bool), (-1, frames), "frame_mask"),
        ]
    )
    return ModelSignature(inputs=inputs, outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, outputs))]))
