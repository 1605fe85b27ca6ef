"""The stage ``estimator`` alone: ``python -m jobs.train_estimator --config RECIPE``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages("Trains the estimator on the labels.", arguments, only="estimator")


if __name__ == "__main__":
    run_job(main)
