"""Retrieval metrics and question-answering accuracy against the published ones (case h)."""

from __future__ import annotations

import pytest
import torch

from hbi_models.metrics import (
    AnswerMetrics,
    RetrievalMetrics,
    answer_ranks,
    text_to_video_ranks,
    video_to_text_ranks,
)
from tests.parity.conftest import Golden

PUBLISHED_NAMES = {
    "R1": "recall_at_1",
    "R5": "recall_at_5",
    "R10": "recall_at_10",
    "R50": "recall_at_50",
    "MedianR": "median_rank",
    "MeanR": "mean_rank",
}


@pytest.mark.parametrize(("direction", "ranks_of"), [("t2v", text_to_video_ranks), ("v2t", video_to_text_ranks)])
def test_metrics_without_ties_equal_the_published_exactly(golden: Golden, direction: str, ranks_of) -> None:
    arrays = golden.arrays("h_metrics")
    similarity = torch.from_numpy(arrays["sim"])
    ranks = ranks_of(similarity, torch.arange(len(similarity)))
    assert ranks.tolist() == (arrays[f"{direction}_cols"] + 1).tolist()
    metrics = RetrievalMetrics.from_ranks(ranks).as_dict()
    for theirs, ours in PUBLISHED_NAMES.items():
        assert metrics[ours] == pytest.approx(float(arrays[f"{direction}_{theirs}"]), rel=1e-12), theirs


def test_ties_give_one_rank_per_query_where_the_published_metric_gives_more(golden: Golden) -> None:
    arrays = golden.arrays("h_metrics")
    similarity = torch.from_numpy(arrays["sim_ties"])
    ranks = text_to_video_ranks(similarity, torch.arange(len(similarity)))
    assert len(ranks) == len(similarity) < len(arrays["ties_t2v_cols"])
    assert ((ranks >= 1) & (ranks <= len(similarity))).all()


def test_question_answering_accuracy_equals_the_published(golden: Golden) -> None:
    arrays = golden.arrays("h_metrics")
    logits, labels = torch.from_numpy(arrays["qa_logits"]), torch.from_numpy(arrays["qa_labels"])
    assert (labels == -1).any()
    metrics = AnswerMetrics.from_ranks(answer_ranks(logits, labels))
    assert metrics.accuracy == pytest.approx(float(arrays["qa_top1"]), rel=1e-6)
    assert metrics.top_5_accuracy == pytest.approx(float(arrays["qa_top5"]), rel=1e-6)
