"""A stage of the pipeline: its settings, its inputs and the function that does its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.tracker import StageTracker
from pipelines.train.trial_host import TrialHost
from pipelines.workspace.artifact import Artifact, Counts
from pipelines.workspace.storage import Storage


@dataclass(frozen=True)
class StageContext:
    """What a stage's function receives."""

    workspace: Storage
    output: Storage
    """The stage's own folder. It may hold what an interrupted run left."""
    inputs: Mapping[str, Artifact]
    tracker: StageTracker
    forced: bool = False
    """Do all of the work again, including work that could be reused."""
    trial: TrialHost | None = None
    """Set if the stage trains as one of the trials of a tuning."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the pipeline: settings and inputs go in, an artifact comes out."""

    name: str
    version: int
    """Raised when a change of the code changes what the stage writes for the same settings."""
    settings: Mapping[str, Any]
    """All that the result depends on besides the inputs, and nothing else."""
    inputs: tuple[str, ...]
    run: Callable[[StageContext], Counts]
    """Does the work in ``context.output`` and returns counts; safe to run again at any point."""
    partial: Callable[[Mapping[str, Artifact], Storage], str | None] = lambda inputs, output: None
    """Says how much an interrupted run left, e.g. ``812 of 1,000 videos``; None = nothing."""
    lost: Callable[[Artifact], str | None] = lambda artifact: None
    """Says what is missing of a finished artifact, e.g. ``2 shards are missing``; None = nothing."""
    metrics: tuple[str, ...] = ()
    """Validation metrics that a training reports after every epoch; a tuning can use these."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Files and folders that it reads besides its inputs and those that the recipe names: places by their meaning."""
    keeps: tuple[str, ...] = ()
    """Folders of the workspace that it reads and no stage makes."""
    repeats_errors: bool = False
    """Whether it keeps what succeeded, and the record of the code that made it, where it is forced to run again."""
    writes: str | None = None
    """Name of what it writes outside its own folder. Stages of several runs that write the same thing,
    or have the same fingerprint, take turns."""
