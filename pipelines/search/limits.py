"""Limits of queries, for modules that must not load PyTorch."""

from hbi_models.config_fields import require

MAX_QUERY_CHARS = 1000


def check_query(query: str) -> None:
    """Raises ``ValueError`` for an empty or too long query."""
    require(bool(query.strip()), "the query is empty; describe what the video shows")
    require(
        len(query) <= MAX_QUERY_CHARS, f"the query has {len(query):,} characters; up to {MAX_QUERY_CHARS:,} are allowed"
    )


def check_counts(top: int, candidates: int) -> None:
    """Raises ``ValueError`` where a search would show no video, or rank fewer than it shows."""
    require(top >= 1, f"top is {top}; it must be 1 or more")
    require(candidates >= top, f"candidates is {candidates}; it must be at least top, {top}")
