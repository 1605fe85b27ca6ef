"""Retrieval metrics against full sorts and torchmetrics, their tie rule and their intervals."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from hbi_models.metric_names import ANSWER_METRICS, RANK_METRICS
from hbi_models.metrics import (
    AnswerMetrics,
    ConfidenceInterval,
    RetrievalMetrics,
    answer_ranks,
    bootstrap_intervals,
    text_to_video_ranks,
    video_to_text_ranks,
)


def scores(texts: int, videos: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(texts, videos, generator=torch.Generator().manual_seed(seed))


def first_hit_of_a_full_sort(row: torch.Tensor, relevant: torch.Tensor) -> int:
    order = row.argsort(descending=True)
    return int(relevant[order].nonzero()[0, 0]) + 1


def mean_rank_over_all_orders_of_ties(row: list[float], relevant: list[bool]) -> float:
    """Expected rank of the first relevant item, by trying every order of the items."""
    ranks = []
    for order in itertools.permutations(range(len(row))):
        placed = sorted(order, key=lambda item: -row[item])
        ranks.append(1 + next(place for place, item in enumerate(placed) if relevant[item]))
    return sum(ranks) / len(ranks)


def test_ranks_equal_those_of_a_full_sort_with_several_texts_per_video() -> None:
    similarity = scores(texts=30, videos=12)
    video_of_text = torch.cat([torch.arange(12), torch.randint(12, (18,), generator=torch.Generator().manual_seed(1))])
    own = video_of_text[:, None] == torch.arange(12)

    expected = [first_hit_of_a_full_sort(similarity[text], own[text]) for text in range(30)]
    assert text_to_video_ranks(similarity, video_of_text).tolist() == expected
    expected = [first_hit_of_a_full_sort(similarity[:, video], own[:, video]) for video in range(12)]
    assert video_to_text_ranks(similarity, video_of_text).tolist() == expected


def test_ranks_agree_with_torchmetrics() -> None:
    # torchmetrics takes relevances in [0, 1].
    similarity = scores(texts=20, videos=20).sigmoid()
    ranks = text_to_video_ranks(similarity, torch.arange(20))
    relevant = torch.eye(20, dtype=torch.bool)
    for text in range(20):
        reciprocal = retrieval_reciprocal_rank(similarity[text], relevant[text]).item()
        assert 1 / ranks[text].item() == pytest.approx(reciprocal)
    hits = [retrieval_hit_rate(similarity[text], relevant[text], top_k=5).item() for text in range(20)]
    assert RetrievalMetrics.from_ranks(ranks).recall_at_5 == pytest.approx(100 * sum(hits) / 20)


def test_ties_count_as_their_mean_over_all_orders() -> None:
    similarity = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    video_of_text = torch.tensor([0, 1, 2, 0])
    own = video_of_text[:, None] == torch.arange(3)
    expected = [mean_rank_over_all_orders_of_ties(similarity[i].tolist(), own[i].tolist()) for i in range(4)]
    assert text_to_video_ranks(similarity, video_of_text).tolist() == pytest.approx(expected)
    columns = [(similarity[:, i].tolist(), own[:, i].tolist()) for i in range(3)]
    expected = [mean_rank_over_all_orders_of_ties(*column) for column in columns]
    assert video_to_text_ranks(similarity, video_of_text).tolist() == pytest.approx(expected)


def test_constant_scores_give_one_chance_level_rank_per_query() -> None:
    similarity = torch.zeros(9, 9)
    for ranks in (text_to_video_ranks(similarity, torch.arange(9)), video_to_text_ranks(similarity, torch.arange(9))):
        assert ranks.tolist() == [5.0] * 9
        assert RetrievalMetrics.from_ranks(ranks).recall_at_1 == 0


def test_metrics_of_known_ranks() -> None:
    metrics = RetrievalMetrics.from_ranks(torch.tensor([1.0, 1.5, 3.0, 5.0, 10.0, 51.0], dtype=torch.float64))
    assert metrics.as_dict() == pytest.approx(
        {
            "recall_at_1": 100 / 6,
            "recall_at_5": 400 / 6,
            "recall_at_10": 500 / 6,
            "recall_at_50": 500 / 6,
            "median_rank": 4.0,
            "mean_rank": 71.5 / 6,
        }
    )


def test_nan_scores_are_refused_with_their_place() -> None:
    similarity = scores(texts=4, videos=4)
    similarity[2, 3] = torch.nan
    for ranks_of in (text_to_video_ranks, video_to_text_ranks):
        with pytest.raises(ValueError, match="1 of 16 scores are NaN, the first in row 2, column 3"):
            ranks_of(similarity, torch.arange(4))


def test_videos_without_a_text_are_distractors_but_no_queries() -> None:
    similarity, video_of_text = scores(texts=3, videos=5), torch.tensor([0, 4, 2])
    assert len(text_to_video_ranks(similarity, video_of_text)) == 3
    with pytest.raises(ValueError, match="2 of 5 videos have no text, the first is 1"):
        video_to_text_ranks(similarity, video_of_text)


def test_indices_of_no_video_are_refused() -> None:
    with pytest.raises(ValueError, match="from -1 to 2"):
        text_to_video_ranks(scores(texts=3, videos=3), torch.tensor([0, -1, 2]))


def test_resamples_draw_whole_clusters_and_give_the_quantiles_of_a_plain_loop() -> None:
    ranks = torch.tensor([1.0, 1.0, 7.0, 2.0, 30.0, 1.0, 4.0], dtype=torch.float64)
    clusters = torch.tensor([5, 5, 5, 2, 2, 9, 1])
    members = {name: ranks[clusters == name].tolist() for name in (1, 2, 5, 9)}
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(300):
        drawn = torch.randint(4, (4,), generator=generator).tolist()
        sample = [rank for place in drawn for rank in members[sorted(members)[place]]]
        values.append(100 * sum(rank <= 1 for rank in sample) / len(sample))
    expected = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    interval = bootstrap_intervals(
        ranks, generator=torch.Generator().manual_seed(4), clusters=clusters, num_resamples=300
    )["recall_at_1"]
    assert [interval.low, interval.high] == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.slow
def test_repeating_every_query_of_a_cluster_makes_no_interval_narrower() -> None:
    ranks = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(0)).double()

    def interval(ranks: torch.Tensor, clusters: torch.Tensor | None = None) -> ConfidenceInterval:
        return bootstrap_intervals(ranks, generator=torch.Generator().manual_seed(1), clusters=clusters)["recall_at_1"]

    repeated = ranks.repeat_interleave(20)
    alone = interval(ranks)
    assert interval(repeated, torch.arange(60).repeat_interleave(20)) == alone
    naive = interval(repeated)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no ranks"):
        RetrievalMetrics.from_ranks(torch.zeros(0, dtype=torch.float64))


@pytest.mark.long
def test_bootstrap_interval_covers_the_true_recall_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(100):
        ranks = torch.where(torch.rand(100, generator=generator) < 0.4, 1.0, 20.0).double()
        interval = bootstrap_intervals(ranks, generator=generator, num_resamples=100, confidence=0.9)["recall_at_1"]
        covered += interval.low <= 40 <= interval.high
    # Binomial with 100 trials of 0.9: outside these bounds less than once in a thousand seeds.
    assert 80 <= covered <= 99


def test_bootstrap_is_a_function_of_the_generator() -> None:
    ranks = text_to_video_ranks(scores(texts=50, videos=50), torch.arange(50))
    first = bootstrap_intervals(ranks, generator=torch.Generator().manual_seed(3), num_resamples=50)
    again = bootstrap_intervals(ranks, generator=torch.Generator().manual_seed(3), num_resamples=50)
    assert first == again
    assert set(first) == set(RetrievalMetrics.from_ranks(ranks).as_dict())
    assert first["mean_rank"].low < ranks.mean().item() < first["mean_rank"].high


def questions(seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits of nine answers to forty questions, and labels of which the first ten are not answerable."""
    labels = torch.randint(9, (40,), generator=torch.Generator().manual_seed(seed))
    labels[:10] = -1
    return scores(texts=40, videos=9), labels


def test_answer_accuracies_equal_torchmetrics_and_unanswerable_questions_are_wrong() -> None:
    logits, labels = questions()
    ranks = answer_ranks(logits, labels)
    answerable = {
        name: 100 * multiclass_accuracy(logits[10:], labels[10:], num_classes=9, top_k=k, average="micro").item()
        for name, k in (("accuracy", 1), ("top_5_accuracy", 5))
    }
    assert AnswerMetrics.from_ranks(ranks[ranks.isfinite()]).as_dict() == pytest.approx(answerable)
    among_all = {name: 0.75 * accuracy for name, accuracy in answerable.items()}
    assert AnswerMetrics.from_ranks(ranks).as_dict() == pytest.approx(among_all)


def test_tied_answers_are_right_only_where_they_all_fit() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert answer_ranks(logits, torch.tensor([0, 2])).tolist() == [1.5, 3.5]


def test_questions_without_any_answer_in_the_vocabulary_have_accuracy_zero() -> None:
    ranks = answer_ranks(scores(texts=3, videos=2), torch.full((3,), -1))
    assert ranks.tolist() == [torch.inf] * 3
    assert AnswerMetrics.from_ranks(ranks) == AnswerMetrics(accuracy=0.0, top_5_accuracy=0.0)


def test_fewer_answers_than_five_are_all_among_the_first_five() -> None:
    ranks = answer_ranks(torch.eye(3), torch.tensor([1, 2, 2]))
    assert AnswerMetrics.from_ranks(ranks).as_dict() == pytest.approx({"accuracy": 100 / 3, "top_5_accuracy": 100})


def test_no_question_has_no_accuracy() -> None:
    ranks = answer_ranks(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="one question or more"):
        AnswerMetrics.from_ranks(ranks)


def test_answers_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="labels run from 0 to 6"):
        answer_ranks(scores(texts=2, videos=6), torch.tensor([0, 6]))


def test_nan_answers_are_refused_for_unanswerable_questions_too() -> None:
    logits, labels = questions()
    logits[0, 1] = torch.nan
    with pytest.raises(ValueError, match="row 0, column 1"):
        answer_ranks(logits, labels)


def test_accuracies_have_intervals_like_recalls() -> None:
    ranks = answer_ranks(*questions())
    intervals = bootstrap_intervals(
        ranks, generator=torch.Generator().manual_seed(0), metrics=AnswerMetrics, num_resamples=100
    )
    expected = AnswerMetrics.from_ranks(ranks).as_dict()
    assert intervals.keys() == expected.keys()
    assert all(intervals[name].low < value < intervals[name].high for name, value in expected.items())


def test_the_names_of_metrics_are_those_that_light_modules_know() -> None:
    assert tuple(item.name for item in fields(RetrievalMetrics)) == RANK_METRICS
    assert tuple(item.name for item in fields(AnswerMetrics)) == ANSWER_METRICS
