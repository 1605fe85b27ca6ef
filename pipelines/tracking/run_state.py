"""What MLflow's run of a pipeline, a stage or a trial should hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that MLflow's run should hold by now; large things are named by their place in the workspace."""

    key: str
    """A tag of MLflow's run, by which it is found again; known before MLflow has made the run."""
    name: str
    experiment: str
    parent: str | None
    """The key of the run above this one."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    started_ms: int
    folder: str | None = None
    """Folder of the workspace whose history holds the curves."""
    figures: tuple[tuple[int, int, Mapping[str, float]], ...] = ()
    """Metrics that no history holds: step, time in ms, values."""
    documents: Mapping[str, Any] = field(default_factory=dict)
    """JSON documents that are not files of the workspace, by their file name in MLflow."""
    files: tuple[str, ...] = ()
    """Files of the workspace."""
    model: str | None = None
    """Folder of the workspace with the trained model."""
    status: Status | Literal["RUNNING"] = "RUNNING"
    ended_ms: int | None = None


def in_order(run: RunState) -> tuple[int, bool]:
    """Sorts runs so that each comes after the run above it."""
    return run.started_ms, run.parent is not None
