"""The stage ``frames`` alone: ``python -m jobs.frames --config RECIPE``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages("Decodes the videos of the manifest that are not decoded yet.", arguments, only="frames")


if __name__ == "__main__":
    run_job(main)
