"""The curves of a training, point by point, in a file beside its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.train.files import HISTORY
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.line_log import LineLog
from pipelines.workspace.storage import Storage

Point = tuple[int, Mapping[str, float]]
"""A step, and metrics that were measured there."""


def to_record(point: Point) -> dict[str, float]:
    """A point as a record of the file: its metrics beside its ``step``."""
    step, metrics = point
    return {"step": step, **metrics}


def from_record(record: Any) -> Point:
    """The point that was written down as ``record``.

    Raises:
        ValueError: it is not a point."""
    metrics = dict(record) if isinstance(record, Mapping) else {}
    step = metrics.pop("step", None)
    # Exact types, because ``isinstance`` takes True and False for numbers.
    if type(step) is not int or not all(type(value) in (int, float) for value in metrics.values()):
        raise ValueError(
            f"{record!r:.80} is not a point of a curve; a whole step and metrics that are numbers are needed"
        )
    return step, metrics


class History:
    """All points of a training stage, kept beside its checkpoints; a restart continues them."""

    def __init__(self, storage: Storage) -> None:
        self._log = LineLog(storage, HISTORY)
        self._metrics: dict[int, dict[str, float]] = {}
        try:
            self._add(map(from_record, self._log.records()))
        except ValueError as error:
            raise DamagedFileError(
                f"{storage.place(HISTORY)} is damaged, or another program wrote it: {error}"
            ) from error

    @property
    def points(self) -> list[Point]:
        """All points, by step; the metrics of a step are one point."""
        return sorted(self._metrics.items())

    def latest(self, prefix: str) -> dict[str, float]:
        """The last value of every metric whose name starts with ``prefix``."""
        return {name: value for _, metrics in self.points for name, value in metrics.items() if name.startswith(prefix)}

    def extend(self, points: Sequence[Point]) -> None:
        """Adds points and commits them; where a step is repeated, its metrics replace the old ones of the same name."""
        self._add(points)
        self._log.append(map(to_record, points))

    def complete(self, points: Sequence[Point]) -> None:
        """To be called when the training has ended: adds missing ``points`` and puts all into one file, a step per
        line."""
        missing = [
            (step, {name: value for name, value in metrics.items() if name not in self._metrics.get(step, {})})
            for step, metrics in points
        ]
        self._add([point for point in missing if point[1]])
        if self._metrics:
            self._log.replace(map(to_record, self.points))

    def _add(self, points: Iterable[Point]) -> None:
        # Added to the step's other metrics: a training and its validation report the same step one after the other.
        for step, metrics in points:
            self._metrics.setdefault(step, {}).update(metrics)
