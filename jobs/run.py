"""The whole pipeline, or a part of it: ``python -m jobs.run --config jobs/recipes/demo.yaml``."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.pipeline import run_stages
from jobs.settings import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    return run_stages("Runs every stage of a recipe that is not done yet.", arguments)


if __name__ == "__main__":
    run_job(main)
