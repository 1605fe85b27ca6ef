"""The stage ``features`` alone: ``python -m jobs.features --config RECIPE``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages(
        "Encodes every image and every text once, where the encoder is frozen.", arguments, only="features"
    )


if __name__ == "__main__":
    run_job(main)
