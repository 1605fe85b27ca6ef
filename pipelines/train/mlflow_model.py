"""The trained model as MLflow serves it: tensors in, similarities out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from hbi_models.axes import TextBatch, VideoBatch
from hbi_models.clip.preprocessing import normalize_pixels
from hbi_models.retrieval import RetrievalModel


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
        videos = self.model.encode_video(VideoBatch(normalize_pixels(frames), frame_mask))
        return self.model.similarity(texts, videos)

    @staticmethod
    def signature(model: RetrievalModel) -> ModelSignature:
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
        return ModelSignature(inputs=inputs, outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]))
