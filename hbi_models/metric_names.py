"""Names of the metrics, for modules that must not load PyTorch."""

from __future__ import annotations

RECALLS_AT = (1, 5, 10, 50)
"""The k of recall at k."""

DIRECTIONS = ("text_to_video", "video_to_text")
"""Directions of retrieval: from the query to what is found."""

RANK_METRICS = (*(f"recall_at_{k}" for k in RECALLS_AT), "median_rank", "mean_rank")
"""Metrics of retrieval in one direction, in the order in which they are shown; see ``metrics.RetrievalMetrics``."""

ANSWER_METRICS = ("accuracy", "top_5_accuracy")
"""Metrics of question answering; see ``metrics.AnswerMetrics``."""

PAIR_SCORES = (
    *("model", "entity", "action", "event"),
    *("mean pooling", "exact interaction", "CLIP cosine"),
)
"""Scores of a text and a video that negatives are judged by; see ``pair_scores``."""
