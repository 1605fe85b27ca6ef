"""The base of the stages over keyed shards: which rows are done, missing or lost. Frames, labels and features share it.

Such a stage needs one row per key, and keeps the rows in shards of a pool that it shares with other runs (see
:mod:`pipelines.workspace.shards`). It makes the rows that the pool lacks. It commits only when every row is there,
either with its data or with the reason why it could not be made.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.progress import Progress
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import ActorResources, TaskResources
from pipelines.resources.sharded_work import Work, map_shards
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts
from pipelines.workspace.errors import StorageError, examples
from pipelines.workspace.shards import ShardPool, newest_rows, split_shards
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)
_NAMED = 5


@dataclass(frozen=True)
class ShardJob:
    """How a shard is made; see :func:`map_shards`."""

    work: Callable[[pa.Table], pa.Table] | type
    """Makes the rows of one shard and commits it."""
    resources: TaskResources | ActorResources
    videos_per_shard: int
    constructor: dict[str, Any] | None = None
    """Arguments of ``work``, if it is a class."""


@dataclass(frozen=True)
class PooledStage(ABC):
    """A stage over keyed shards; subclasses define what differs between the stages."""

    recipe: Recipe

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised when a change of the code changes the result for the same settings. The pool's name contains it, so all
    rows are made again, and with them the results of later stages."""
    inputs: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]
    """The unit in which the work is counted, e.g. ``frames``."""
    columns: ClassVar[tuple[str, ...]]
    """Columns of the pool that the commit needs."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All that a row depends on, besides the inputs."""

    @abstractmethod
    def pool(self, workspace: Storage) -> ShardPool:
        """Where the shards lie."""

    @abstractmethod
    def wanted(self, inputs: Mapping[str, Artifact]) -> pa.Table:
        """A row with ``key`` and ``video_id`` for each video, in the order in which they are cut into shards."""

    @abstractmethod
    def job(self, context: StageContext, pool: ShardPool, generation: int, total: int) -> ShardJob:
        """How shards of ``generation`` are made, where ``total`` videos are wanted."""

    @abstractmethod
    def commit(self, context: StageContext, wanted: pa.Table, found: pa.Table) -> Counts:
        """Writes the artifact, except for its document, from the pool's rows of all wanted keys."""

    @property
    def keeps(self) -> tuple[str, ...]:
        """Folders of the workspace that it reads and no stage makes."""
        return ()

    @property
    def repeats_errors(self) -> bool:
        """Whether a forced run keeps the rows that are good; of two rows with one key the good one counts."""
        return False

    def done(self, pool: ShardPool, since: int) -> pa.Table:
        """The pool's rows that need not be made."""
        return pool.index(since=since)

    def stage(self) -> Stage:
        """This as a stage of a graph."""
        return Stage(
            name=self.name,
            version=self.version,
            settings=self.settings,
            inputs=self.inputs,
            run=self.run,
            partial=self.partial,
            lost=self.lost,
            keeps=self.keeps,
            repeats_errors=self.repeats_errors,
            writes=self.pool(Storage(self.recipe.workspace)).name,
        )

    def partial(self, inputs: Mapping[str, Artifact], output: Storage) -> str | None:
        """How many of the wanted videos are done already."""
        pool = self.pool(Storage(self.recipe.workspace))
        # Forced work that was interrupted has left the number of its generation; older rows are not done then.
        since, _ = pool.generations(output, forced=False)
        wanted = self.wanted(inputs)
        total, left = len(wanted), len(without(wanted, self.done(pool, since)))
        return f"{total - left:,} of {total:,} videos are done" if left < total else None

    def lost(self, artifact: Artifact) -> str | None:
        """What is missing of the shards that the artifact points into."""
        return self.pool(Storage(self.recipe.workspace)).describe_loss(artifact.storage)

    def run(self, context: StageContext) -> Counts:
        """Makes the missing rows, and commits when all rows are there.

        Raises:
            StorageError: rows that were made are not in the pool, although they were made again.
        """
        pool, wanted = self.pool(context.workspace), self.wanted(context.inputs)
        since, generation = pool.generations(context.output, forced=context.forced)
        job = self.job(context, pool, generation, len(wanted))
        work = Work()
        self._make(job, without(wanted, self.done(pool, since)), len(wanted), work)
        found = pool.index(self.columns, since=since)
        if len(absent := without(wanted, found)):
            # A shard was damaged since it was written, or a network file system lists it late.
            logger.warning("%s: %s; they are made again", self.name, _not_there(absent, wanted, pool))
            self._make(job, absent, len(wanted), work)
            found = pool.index(self.columns, since=since)
        if len(absent := without(wanted, found)):
            raise StorageError(
                f"{self.name}: {_not_there(absent, wanted, pool)}, although they were made twice. Nothing was "
                "committed. The file system loses what is written there, or shows it late: check it, and run the same "
                "command again: what is there is kept"
            )
        # The pool also holds rows of videos that only other manifests have.
        mine = found.filter(pc.is_in(found.column("key"), wanted.column("key")))
        return {**self.commit(context, wanted, newest_rows(mine)), **work.counts(self.unit)}

    def _make(self, job: ShardJob, left: pa.Table, total: int, work: Work) -> None:
        """Makes the rows of the videos ``left``, of ``total`` in all."""
        with Progress(self.name, total=total, unit="videos", done=total - len(left)) as progress:
            for summary in map_shards(
                split_shards(left, job.videos_per_shard),
                job.work,
                constructor=job.constructor,
                name=self.name,
                resources=job.resources,
            ):
                work.add(summary)
                each = summary["units"] / max(summary["rows"], 1)
                progress.advance(summary["rows"], f"{each:.1f} {self.unit} each")


def with_version(settings: Mapping[str, Any], version: int) -> Mapping[str, Any]:
    """The identity of a pool: the settings of its rows and, from version 2 on, the version of the stage.

    Version 1 adds nothing, so that pools keep the names that they had before versions were part of them.
    """
    return settings if version == 1 else {**settings, "stage_version": version}


def without(wanted: pa.Table, found: pa.Table) -> pa.Table:
    """The rows of ``wanted`` whose key is not in ``found``."""
    return wanted.filter(pc.invert(pc.is_in(wanted.column("key"), found.column("key"))))


def _not_there(absent: pa.Table, wanted: pa.Table, pool: ShardPool) -> str:
    names = examples(absent.column("video_id").to_pylist(), limit=_NAMED)
    return f"{len(absent):,} of {len(wanted):,} videos are not in {pool.storage.place()} ({names})"
