"""What a video more costs: seconds and memory of whole runs up to the labels, at a few sizes.

The sizes fit into the minutes of the table; ``python -m benchmarks.memory`` does the same at 1,000, 5,000 and 20,000
videos, and shows the course of every process. What a stage needs to start (actors, the model) is the same at every
size, so the seconds that each video more takes in the two stages are compared: they stay the same where the cost is
linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.memory import KINDS, Run, measure
from benchmarks.rows import Row, Spread, Target

SIZES = (300, 1500, 2700)


def rows(folder: Path) -> Iterator[Row]:
    runs = []
    for videos in SIZES:
        place = folder / str(videos)
        place.mkdir()
        runs.append(measure(videos, place))
    sizes = f"{', '.join(f'{run.videos:,}' for run in runs)} tiny videos, frames and labels"
    slower = Spread((slope(runs[1:]) / slope(runs[:2]),))
    yield Row(
        f"seconds per video, {sizes}",
        f"between {runs[0].videos:,} and {runs[1].videos:,} videos",
        Spread((1000 * slope(runs[:2]),)),
        Spread((1000 * slope(runs[1:]),)),
        "ms a video",
        slower,
        Target("≤", 1.1),
    )
    small, large = largest_mb(runs[-2]), largest_mb(runs[-1])
    yield Row(
        f"memory of the largest process, {sizes}",
        f"with {runs[-2].videos:,} videos",
        Spread((small,)),
        Spread((large,)),
        "MB",
        Spread((large / small,)),
        Target("≤", 1.1),
    )


def slope(runs: Sequence[Run]) -> float:
    """Seconds of the stages that each video more took, from the first run to the last."""
    return (runs[-1].stage_seconds - runs[0].stage_seconds) / (runs[-1].videos - runs[0].videos)


def largest_mb(run: Run) -> float:
    return max(run.peak_mb(kind) for kind in ("driver", *KINDS.values()) if kind in run.courses)
