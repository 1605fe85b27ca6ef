"""The stage ``shapes`` alone: ``python -m jobs.shapes --config RECIPE``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages("Generates the videos and annotations of the shapes data set.", arguments, only="shapes")


if __name__ == "__main__":
    run_job(main)
