"""Retrieval and question-answering metrics, computed from complete score matrices.

Tie rule, everywhere: a rank is the expected one when tied candidates are put in random order.
A query tied with one wrong candidate at the top has rank 1.5 and is no hit at 1; constant
scores give chance level. Each query has exactly one rank, and without ties it is an integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hbi_models.config_fields import require
from hbi_models.metric_names import RECALLS_AT


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalMetrics:
    """Metrics of one direction of retrieval; recalls in percent of the queries, ranks from 1."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    recall_at_50: float
    median_rank: float
    mean_rank: float

    @classmethod
    def from_ranks(cls, ranks: Float[Tensor, " queries"]) -> RetrievalMetrics:
        """Returns the metrics of queries with these ranks; of an even number, the median is the middle of two.

        Raises:
            ValueError: there is no query.
        """
        require(len(ranks) > 0, "there are no ranks; retrieval metrics need one query or more")
        ranks = ranks.double()
        recalls = {f"recall_at_{k}": 100 * (ranks <= k).double().mean().item() for k in RECALLS_AT}
        ordered = ranks.sort().values
        median = (ordered[(len(ranks) - 1) // 2] + ordered[len(ranks) // 2]).item() / 2
        return cls(**recalls, median_rank=median, mean_rank=ranks.mean().item())

    def as_dict(self) -> dict[str, float]:
        """Returns the metrics under their field names."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerMetrics:
    """In percent, questions whose right answer is the first, and among the first five, of the vocabulary."""

    accuracy: float
    top_5_accuracy: float

    @classmethod
    def from_ranks(cls, ranks: Float[Tensor, " questions"]) -> AnswerMetrics:
        """Returns the metrics of questions whose right answers have these ranks (``answer_ranks``).

        A question whose answer is not in the vocabulary counts as wrong. Published results count only answerable
        questions: give ``ranks[ranks.isfinite()]`` for those.

        Raises:
            ValueError: there is no question.
        """
        require(len(ranks) > 0, "there are no ranks; accuracies need one question or more")
        accuracy, top_5_accuracy = (100 * (ranks <= k).double().mean().item() for k in (1, 5))
        return cls(accuracy=accuracy, top_5_accuracy=top_5_accuracy)

    def as_dict(self) -> dict[str, float]:
        """Returns the metrics under their field names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """Bounds of a metric, in the metric's own units."""

    low: float
    high: float


def text_to_video_ranks(
    similarity: Float[Tensor, "texts videos"], video_of_text: Int[Tensor, " texts"]
) -> Float[Tensor, " texts"]:
    """Returns the rank of each text's video among all videos, from 1.

    ``video_of_text`` holds the column of each text's video; texts may share a video, and videos
    without a text are distractors.

    Raises:
        ValueError: a score is NaN, or an index is not that of a video.
    """
    _check(similarity, video_of_text)
    own = similarity.gather(1, video_of_text[:, None])
    above = (similarity > own).sum(dim=1)
    tied = (similarity == own).sum(dim=1) - 1
    return 1 + above + tied.double() / 2


def video_to_text_ranks(
    similarity: Float[Tensor, "texts videos"], video_of_text: Int[Tensor, " texts"]
) -> Float[Tensor, " videos"]:
    """Returns the rank of each video's best caption among all texts, from 1.

    Raises:
        ValueError: a score is NaN, an index is not that of a video, or a video has no text.
    """
    _check(similarity, video_of_text)
    num_videos = similarity.shape[1]
    captions = torch.bincount(video_of_text, minlength=num_videos)
    require(
        bool((captions > 0).all()),
        f"{int((captions == 0).sum())} of {num_videos} videos have no text, the first is {int(captions.argmin())}; "
        "as queries they have no right answer: remove their columns",
    )
    own = similarity.gather(1, video_of_text[:, None])[:, 0]
    best = similarity.new_full((num_videos,), -torch.inf).scatter_reduce(0, video_of_text, own, "amax")
    above = (similarity > best).sum(dim=0)
    own_best = torch.zeros_like(captions).index_add(0, video_of_text, (own == best[video_of_text]).to(captions.dtype))
    tied = (similarity == best).sum(dim=0) - own_best
    # Of m right and n wrong candidates in random order, n / (m + 1) wrong ones precede the first right one.
    return 1 + above + tied.double() / (own_best + 1)


def bootstrap_intervals(
    ranks: Float[Tensor, " queries"],
    *,
    generator: torch.Generator,
    metrics: type[RetrievalMetrics | AnswerMetrics] = RetrievalMetrics,
    clusters: Int[Tensor, " queries"] | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, ConfidenceInterval]:
    """Returns a percentile bootstrap interval of each of the ``metrics``, over resampled clusters of queries.

    The interval describes the sampling of queries, with the gallery and the model fixed (Efron and
    Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13). Queries about one video are correlated, so whole
    clusters are drawn with replacement (Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section
    3.8), and ten captions of a video do not count as ten independent ones. ``generator`` lives on the device of
    ``ranks``.

    Args:
        ranks: of the queries.
        generator: of the resamples.
        metrics: what is computed of each resample.
        clusters: the cluster of each query, as arbitrary numbers; None = every query is its own cluster.
        num_resamples: how often.
        confidence: of the interval.

    Raises:
        ValueError: there is no query, no resample, or ``confidence`` does not lie in (0, 1).
    """
    require(0 < confidence < 1, f"confidence is {confidence}; it must lie in (0, 1)")
    require(len(ranks) > 0, "there are no ranks; metrics need one query or more")
    drawn = cluster_resamples(
        torch.arange(len(ranks)) if clusters is None else clusters, generator=generator, num_resamples=num_resamples
    )
    resamples = [metrics.from_ranks(ranks[rows]).as_dict() for rows in drawn]
    tail = (1 - confidence) / 2
    quantiles = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    intervals = {}
    for name in resamples[0]:
        values = torch.tensor([resample[name] for resample in resamples], dtype=torch.float64)
        intervals[name] = ConfidenceInterval(*values.quantile(quantiles).tolist())
    return intervals


def cluster_resamples(
    clusters: Int[Tensor, " queries"], *, generator: torch.Generator, num_resamples: int
) -> Iterator[Int[Tensor, " drawn"]]:
    """Yields the queries of ``num_resamples`` resamples: as many clusters as there are, drawn with replacement.

    The number of queries in a resample varies with the clusters drawn. Equal numbers in ``clusters`` mean the same
    cluster.

    Raises:
        ValueError: there is no query, or no resample is asked for.
    """
    require(num_resamples >= 1, f"num_resamples is {num_resamples}; it must be 1 or more")
    require(len(clusters) > 0, "there are no queries to draw from; a resample needs one or more")
    # A generator function would make the checks above only when its first resample is taken.
    return _resamples(clusters, generator, num_resamples)


def _resamples(clusters: Tensor, generator: torch.Generator, num_resamples: int) -> Iterator[Tensor]:
    names, members = torch.unique(clusters.to(generator.device), return_inverse=True)  # type: ignore[no-untyped-call]
    queries = torch.arange(len(members), device=generator.device)
    for _ in range(num_resamples):
        drawn = torch.randint(len(names), (len(names),), generator=generator, device=generator.device)
        times = torch.bincount(drawn, minlength=len(names))
        yield queries.repeat_interleave(times[members])


def answer_ranks(
    logits: Float[Tensor, "questions answers"], labels: Int[Tensor, " questions"]
) -> Float[Tensor, " questions"]:
    """Returns the rank of each question's right answer among all answers, from 1.

    A label of -1 is a question whose answer is not in the vocabulary; its rank is infinite.

    Raises:
        ValueError: a logit is NaN, or a label is neither -1 nor an answer.
    """
    num_answers = logits.shape[1]
    if not ((labels >= -1) & (labels < num_answers)).all():
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; they must be answers 0 to {num_answers - 1}, "
            "or -1 where the answer is not in the vocabulary"
        )
    # Any answer will do in the place of a missing one, whose rank is replaced.
    ranks = text_to_video_ranks(logits, labels.clamp(min=0))
    return ranks.masked_fill(labels < 0, torch.inf)


def _check(similarity: Tensor, video_of_text: Tensor) -> None:
    num_texts, num_videos = similarity.shape
    if not ((video_of_text >= 0) & (video_of_text < num_videos)).all():
        raise ValueError(
            f"video_of_text must hold columns of the {num_texts} x {num_videos} score matrix, 0 to {num_videos - 1}; "
            f"it runs from {int(video_of_text.min())} to {int(video_of_text.max())}"
        )
    invalid = similarity.isnan()
    if invalid.any():
        row, column = invalid.nonzero()[0].tolist()
        raise ValueError(
            f"{int(invalid.sum())} of {similarity.numel()} scores are NaN, the first in row {row}, column {column}; "
            "NaN has no rank: leave out items without features, or look for a diverged model"
        )
