"""The journal of a tuning: what its trials have done so far.

A tuning continues from its journal, and not from what Ray Tune or Optuna write. Tune's own snapshots come every ten
seconds, are not atomic, and hold no scheduler. Optuna's storages need a local file, a SQL server or Redis, while a
workspace may lie in a bucket. Sampler and scheduler are restored from the records, so that a driver may be killed at
any point. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

TRIALS = "trials.jsonl"

FORMER_FOLDER = "search"
"""Name of the folder of tunings, and of their phase of trials, in earlier versions; a tuning that began there stays
there."""

Phase = Literal["trial", "final"]
"""``trial``: one training per setting. ``final``: finalists and baselines, several seeds each."""

TrialState = Literal["running", "finished", "stopped", "failed"]
"""``stopped``: ended early by the scheduler. ``failed``: it raised, or its process died too often."""

HOPELESS = (ArithmeticError, ValueError, FileNotFoundError)
"""Errors that a repetition would raise again: the trial has failed. After any other error Tune tries again."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One validation of a trial."""

    progress: int
    """Validations since the start of the training, this one included: the scheduler's clock."""
    epoch: float
    step: int
    value: float
    """The metric that is tuned for."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One training with one setting and one seed."""

    name: str
    phase: Phase
    label: str
    """Which setting: ``trial-003``, or the name of a baseline. Trainings with several seeds share it."""
    values: Mapping[str, Any]
    """Values of the fields that differ from the recipe; the last ones if the scheduler changed them."""
    seed: int
    fingerprint: str
    """Fingerprint of the trained stage, whose artifact is the trial's result."""
    folders: tuple[str, ...] = ()
    """Folders of the workspace that it needs: those of its stages."""
    state: TrialState = "running"
    reports: tuple[Report, ...] = ()
    value: float | None = None
    """The metric at the chosen checkpoint of a finished trial, else the last one reported."""
    reason: str = ""
    """Why it ended."""
    seconds: float = 0.0
    """From its start to its end, within the command in which it ended."""

    @property
    def ended(self) -> bool:
        """Whether the trial is over."""
        return self.state != "running"

    def reported(self, report: Report) -> TrialRecord:
        """The record with one more report; a report that is repeated after a restart replaces the old one."""
        kept = tuple(other for other in self.reports if other.progress < report.progress)
        return replace(self, reports=(*kept, report), value=report.value)

    def value_at(self, progress: int) -> float | None:
        """The last value reported up to ``progress``."""
        return next((report.value for report in reversed(self.reports) if report.progress <= progress), None)


class Journal:
    """The records of a tuning, in the order in which the trials were first started."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: dict[str, TrialRecord] = {}
        if storage.exists(TRIALS):
            for line in storage.read_bytes(TRIALS).decode().splitlines():
                document = json.loads(line)
                reports = tuple(Report(**report) for report in document.pop("reports"))
                if document["phase"] == FORMER_FOLDER:
                    document["phase"] = "trial"
                record = TrialRecord(**document | {"reports": reports, "folders": tuple(document["folders"])})
                self._records[record.name] = record

    def __getitem__(self, name: str) -> TrialRecord:
        return self._records[name]

    def get(self, name: str) -> TrialRecord | None:
        """The record of a trial that was started."""
        return self._records.get(name)

    @property
    def folders(self) -> set[str]:
        """Folders of the workspace that the trials need."""
        return {folder for record in self._records.values() for folder in record.folders}

    def of(self, phase: Phase) -> list[TrialRecord]:
        """All records of a phase."""
        return [record for record in self._records.values() if record.phase == phase]

    def put(self, record: TrialRecord) -> TrialRecord:
        """Commits a record."""
        self._records[record.name] = record
        # All records each time: Storage replaces a file as a whole, so that a killed driver leaves whole records.
        lines = (json.dumps(plain(record)) for record in self._records.values())
        self._storage.write_bytes(TRIALS, "".join(f"{line}\n" for line in lines).encode())
        return record
