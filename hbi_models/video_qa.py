"""Video question answering: a classifier over answers on top of every level of the retrieval model.

::

    question ── levels ──► pooled by learned weights ── projected ──┐
                                                                    ├──► hidden layer ──► answers
    video ───── levels ──► pooled by learned weights ── projected ──┘

There is one such head per level. An answer's logit is the weighted sum of the levels' logits. In training each level
answers on its own, and the levels also get the losses of retrieval, with the question as the text of its video.
``losses.video_qa_loss`` adds the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from hbi_models.axes import AnsweredPairs, TextBatch, TokenFeatures, TokenLevel, VideoBatch, at_least_float32
from hbi_models.config_fields import require
from hbi_models.configs import LEVELS, AnswerHeadConfig, VideoQAConfig
from hbi_models.draws import BatchDraws
from hbi_models.retrieval import RetrievalModel, importance_logits, importance_network, init_published
from hbi_models.similarity import token_weights
from hbi_models.stored import StoredModel


class VideoQAModel(StoredModel):
    """Answers questions about videos out of a fixed vocabulary of answers.

    ``encoder`` is a retrieval model in full: weights of a trained one fit into it, and its
    ``teacher`` starts random where the settings ask for one.

    Args:
        config: The settings.
        clip_weights: As in :func:`hbi_models.clip.loading.load_clip`.

    Raises:
        ValueError: The settings do not fit the CLIP architecture.
    """

    kind, settings = "video_qa", VideoQAConfig

    def __init__(self, config: VideoQAConfig, clip_weights: Path | None = None) -> None:
        super().__init__()
        self.encoder = RetrievalModel(config.encoder, clip_weights)
        # The encoder has written the pixel statistics of its weights into its settings.
        self.config = replace(config, encoder=self.encoder.config)
        self.answer_heads = nn.ModuleDict(
            {
                level: AnswerHead(
                    self.encoder.dim,
                    config.num_answers,
                    config=config.head,
                    padded_weights=config.encoder.quirks.padded_answer_weights,
                )
                for level in LEVELS
            }
        )
        self.answer_heads.apply(init_published)

    def forward(
        self,
        questions: TextBatch | TokenFeatures,
        videos: VideoBatch | TokenFeatures,
        labels: Int[Tensor, " pairs"],
        draws: BatchDraws | None = None,
    ) -> AnsweredPairs:
        """Returns what the loss needs: question i is about video i, and its answer is ``labels[i]``.

        The labels pass through, so that they are gathered together with their pairs; -1 stands for
        an answer that is not in the vocabulary. ``draws`` gives dropout and the tie-break
        noise of the clustering; without it, dropout is PyTorch's.
        """
        pairs = self.encoder(questions, videos, draws)
        logits = (
            self.answer_heads[level](question, video, draws)
            for level, question, video in zip(LEVELS, pairs.texts, pairs.videos, strict=True)
        )
        return AnsweredPairs(pairs, tuple(logits), labels)

    @property
    def fixed_weights(self) -> frozenset[str]:
        """Names of the weights of a frozen encoder."""
        return frozenset(f"encoder.{name}" for name in self.encoder.fixed_weights)

    def answer_logits(
        self, questions: Sequence[TokenLevel], videos: Sequence[TokenLevel], rates: Sequence[float] | None = None
    ) -> Float[Tensor, "pairs answers"]:
        """Returns the logit of every answer to every question about its video, all levels mixed.

        ``questions`` and ``videos`` are what the encoder's ``encode_text`` and ``encode_video``
        return. ``rates`` weigh the levels; by default they are the settings' ``level_rates``.

        Raises:
            ValueError: There is not one rate per level, or every rate is 0.
        """
        rates = self.config.level_rates if rates is None else rates
        require(
            len(rates) == len(LEVELS) and any(rates),
            f"the rates of the levels are {tuple(rates)}; there must be {len(LEVELS)}, at least one different from 0",
        )
        mixed = [
            rate * self.answer_heads[level](question, video)
            for level, rate, question, video in zip(LEVELS, rates, questions, videos, strict=True)
            if rate
        ]
        return torch.stack(mixed).sum(dim=0)


class AnswerHead(nn.Module):
    """Answers at one level, from the weighted means of a question's words and a video's frames."""

    def __init__(self, dim: int, num_answers: int, *, config: AnswerHeadConfig, padded_weights: bool) -> None:
        super().__init__()
        # Published: 512-512-1.
        self.text_importance = importance_network(dim, dim)
        self.video_importance = importance_network(dim, dim)
        self.text_projection = nn.Linear(dim, config.projection)
        self.video_projection = nn.Linear(dim, config.projection)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Sequential(
            nn.Linear(2 * config.projection, config.hidden), nn.ReLU(), nn.Linear(config.hidden, num_answers)
        )
        self.padded_weights = padded_weights

    def forward(
        self, questions: TokenLevel, videos: TokenLevel, draws: BatchDraws | None = None
    ) -> Float[Tensor, "pairs answers"]:
        """Returns a logit for every answer, in float32."""
        question = self.text_projection(self._pool(questions, self.text_importance))
        video = self.video_projection(self._pool(videos, self.video_importance))
        # The order of published checkpoints.
        both = torch.cat([video, question], dim=-1)
        if draws is None or not self.training or self.dropout.p == 0:
            both = self.dropout(both)
        else:
            both = draws.dropout(both, self.dropout.p)
        logits: Tensor = self.classifier(both)
        return at_least_float32(logits)

    def _pool(self, level: TokenLevel, importance: nn.Module) -> Float[Tensor, "items dim"]:
        """Returns the weighted mean of each item's real tokens; 0 for an item without any."""
        logits = importance_logits(importance, level.features)
        if self.padded_weights:
            weights = logits.softmax(dim=-1) * level.mask
        else:
            weights = token_weights(TokenLevel(level.features, level.mask, logits))
        return einsum(weights, level.features, "items tokens, items tokens dim -> items dim")
