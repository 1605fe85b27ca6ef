"""The stage ``video_qa`` alone: ``python -m jobs.train_video_qa --config RECIPE``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages("Trains the question answering model.", arguments, only="video_qa")


if __name__ == "__main__":
    run_job(main)
