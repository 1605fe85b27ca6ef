"""Answers to questions about many videos: each video encoded once, its features used for all its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hbi_models.metrics import answer_ranks
from hbi_models.video_qa import VideoQAModel
from pipelines.datasets.answers import Vocabulary
from pipelines.models.encoding import Levels, encode_texts_of, encode_videos, on_device
from pipelines.splits import QuestionView

TOP = 5
"""Best answers that are kept of each question."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered, on the CPU: a row per question, video after video."""

    ranks: Float[Tensor, " questions"]
    """Rank of the right answer, from 1; infinite if it is not in the vocabulary."""

    labels: Int[Tensor, "questions top"]
    """The best answers, the best first; all of a small vocabulary."""

    probabilities: Float[Tensor, "questions top"]
    """Their probabilities, in the order of ``labels``."""


def answer_questions(
    model: VideoQAModel,
    view: QuestionView,
    videos: Sequence[int],
    vocabulary: Vocabulary,
    *,
    device: torch.device,
    batch_size: int,
    level_rates: Sequence[float] | None = None,
) -> Answers:
    """The answers to all questions about ``videos``.

    Args:
        model: on ``device``.
        view: questions, and frames or features.
        videos: positions in ``view``.
        vocabulary: the answers in the order of the model's classes.
        device: where to compute.
        batch_size: videos encoded, and questions answered, at once.
        level_rates: weights of the levels; None = the model's.
    """
    # It begins with a part of no questions, so that a rank without videos has tensors of the right shapes, too.
    parts = [_best_answers(torch.empty(0, len(vocabulary)), torch.empty(0, dtype=torch.int64))]
    for start in range(0, len(videos), batch_size):
        block = videos[start : start + batch_size]
        clips = encode_videos(model.encoder, view.store, block, device=device, batch_size=batch_size)
        asked = [(place, question) for place, video in enumerate(block) for question in view.questions(video)]
        for first in range(0, len(asked), batch_size):
            part = asked[first : first + batch_size]
            texts = [(block[place], question.question) for place, question in part]
            questions = encode_texts_of(model.encoder, view.store, texts, device=device, batch_size=batch_size)
            places = torch.tensor([place for place, _ in part])
            # One row of the clips per question: questions about a video share its features.
            about = on_device(_rows_of(clips, places), device)
            logits = model.answer_logits(on_device(questions, device), about, level_rates)
            labels = torch.tensor([vocabulary.label(question.answer) for _, question in part])
            parts.append(_best_answers(logits.float().cpu(), labels))
    return concatenate_answers(parts)


def _best_answers(logits: Float[Tensor, "questions answers"], labels: Int[Tensor, " questions"]) -> Answers:
    probabilities, best = logits.softmax(dim=1).topk(min(TOP, logits.shape[1]))
    return Answers(answer_ranks(logits, labels), best, probabilities)


def concatenate_answers(parts: Sequence[Answers]) -> Answers:
    """The rows of all parts, one part after the other."""
    return Answers(
        ranks=torch.cat([part.ranks for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        probabilities=torch.cat([part.probabilities for part in parts]),
    )


def _rows_of(levels: Levels, rows: Int[Tensor, " chosen"]) -> Levels:
    return tuple(level.map(lambda tensor: tensor[rows]) for level in levels)
