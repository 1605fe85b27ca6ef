"""Which trials come next: settings that are proposed one by one, or a list that is known."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.proposals import Proposer
from pipelines.tune.search import Search

logger = logging.getLogger(__name__)

_ATTEMPTS = 50
"""Draws after which a space is taken to hold no setting that was not tried."""


class ProposedTrials:
    """The trials of the search itself: those that were interrupted, then new ones, each setting once."""

    def __init__(self, search: Search, journal: Journal) -> None:
        self._search, self._proposer = search, Proposer(search.config, search.space)
        records = journal.of("search")
        for record in records:
            self._proposer.started(record)
            if record.ended:
                self._proposer.ended(record)
        self._interrupted = [record for record in records if not record.ended]
        self._known = {record.fingerprint for record in records}
        self._count = len(records)
        self.total, self.done = search.config.trials, len(records) - len(self._interrupted)

    def next(self) -> TrialRecord | None:
        """The next trial; None when there are as many as wanted, or no setting is left."""
        if self._interrupted:
            return self._interrupted.pop(0)
        if self._count >= self.total:
            return None
        name = trial_name(self._count)
        for attempt in range(_ATTEMPTS):
            values = self._proposer.propose(name, self._count, attempt)
            if values is None:
                break
            record = self._search.record(name, values, phase="search", label=name, seed=self._search.recipe.seed)
            if record.fingerprint not in self._known:
                self._known.add(record.fingerprint)
                self._count += 1
                return record
            self._proposer.drop(name)
        logger.info("search: no setting is left that was not tried; it ends with %d trials", self._count)
        self.total = self._count
        return None

    def reported(self, record: TrialRecord) -> None:
        """A trial was validated."""
        self._proposer.reported(record.name, record.reports[-1])

    def ended(self, record: TrialRecord) -> None:
        """A trial came to its end."""
        self._proposer.ended(record)


class ListedTrials:
    """Trials that are known beforehand, without those that ended in an earlier run."""

    def __init__(self, records: Sequence[TrialRecord]) -> None:
        self._left = [record for record in records if not record.ended]
        self.total, self.done = len(records), len(records) - len(self._left)

    def next(self) -> TrialRecord | None:
        """The next one of the list."""
        return self._left.pop(0) if self._left else None

    def reported(self, record: TrialRecord) -> None:
        """Nothing follows from it."""

    def ended(self, record: TrialRecord) -> None:
        """Nothing follows from it."""


def trial_name(number: int) -> str:
    """``trial-007``."""
    return f"trial-{number:03d}"


def population(search: Search, journal: Journal) -> list[TrialRecord]:
    """The trials of population-based training, with the settings that they have by now."""
    proposer = Proposer(search.config, search.space)
    records = []
    for number in range(search.config.trials):
        name = trial_name(number)
        values = proposer.propose(name, number)
        assert values is not None, "a population is drawn"
        known = journal.get(name)
        records.append(known or search.record(name, values, phase="search", label=name, seed=search.recipe.seed))
    return records
