"""Names and order of what the evaluations write, for modules that must not load PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METRICS_FILE = "metrics.json"
RANKS_FILE = "ranks.parquet"
TOP_VIDEOS_FILE = "top_videos.parquet"
ANSWERS_FILE = "answers.parquet"


def by_questions(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Metrics by question type, those with most questions first; ``overall`` comes before all others."""
    return sorted(metrics.items(), key=lambda item: (-item[1]["questions"], item[0] != "overall"))


def with_interval(metric: Mapping[str, float]) -> str:
    """A metric and its 95% interval in words: ``45.1 (43.0–47.2)``."""
    return f"{metric['value']:.1f} ({metric['low']:.1f}–{metric['high']:.1f})"
