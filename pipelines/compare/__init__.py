"""Comparing finished evaluations: the same queries, resampled together, and the difference with its intervals."""
