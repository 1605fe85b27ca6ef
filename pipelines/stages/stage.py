"""The stage graph: fingerprints, plan, execution.

A stage is identified by content: its fingerprint is a digest of its name, its version, its
settings and the fingerprints of its inputs. All fingerprints are known before anything runs, so
a plan is free. Code is not part of it: an artifact says which source files made it, and a plan which of them are
others now. A finished stage has an ``artifact.json`` in ``<workspace>/<stage>/<fingerprint>``,
written last; a stage without one is run, and goes on where an interrupted run left it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipelines.stages.sources import Sources, changed_files
from pipelines.tracker import StageTracker
from pipelines.train.trial_host import TrialHost
from pipelines.workspace.artifact import (
    ARTIFACT,
    FORCED,
    Artifact,
    Counts,
    digest,
    discard,
    left_by_force,
    plain,
    read_document,
    versions,
)
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.locks import Lock, held
from pipelines.workspace.runs import record_run
from pipelines.workspace.shards import SHARDS
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)

State = Literal["done", "partial", "missing", "forced", "changed", "outdated", "damaged"]
"""``forced``: asked for. ``changed``: made by other code, and to be made again for that. ``outdated``: done, but an
input runs again. ``damaged``: done, but a part is lost; it is made again as it was, so what depends on it stays
valid."""

ANEW: tuple[State, ...] = ("forced", "changed", "outdated")

CODE_CHANGED = "code changed since"

SOURCES = "code/sources.json"
"""Where a stage's work lies: digests of the source files that began it."""


@dataclass(frozen=True)
class StageContext:
    """What a stage's function receives."""

    workspace: Storage
    output: Storage
    """The stage's own folder. It may hold what an interrupted run left."""
    fingerprint: str
    inputs: Mapping[str, Artifact]
    tracker: StageTracker
    forced: bool = False
    """Do all of the work again, also what could be reused."""
    trial: TrialHost | None = None
    """Set where the stage trains as one of the trials of a tuning."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the pipeline: settings and inputs go in, an artifact comes out."""

    name: str
    version: int
    """Raised when the code changes what the stage writes for the same settings."""
    settings: Mapping[str, Any]
    """All that the result depends on, besides the inputs; nothing that it does not."""
    inputs: tuple[str, ...]
    run: Callable[[StageContext], Counts]
    """Does the work in ``context.output`` and returns counts; safe to run again at any point."""
    partial: Callable[[Mapping[str, Artifact], Storage], str | None] = lambda inputs, output: None
    """Says how much an interrupted run left, e.g. ``812 of 1,000 videos``; None = nothing."""
    lost: Callable[[Artifact], str | None] = lambda artifact: None
    """Says what of a finished artifact is gone, e.g. ``2 shards are missing``; None = nothing."""
    metrics: tuple[str, ...] = ()
    """Validation metrics that a training reports after every epoch; a tuning may look at these."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """What it reads besides its inputs and what the recipe names: places by what they are."""
    keeps: tuple[str, ...] = ()
    """Folders of the workspace that it reads and no stage makes."""
    writes: str | None = None
    """Name of what it writes outside its own folder. Stages of several runs that write the same thing,
    or have the same fingerprint, take turns."""


@dataclass(frozen=True)
class Step:
    """A stage in a plan."""

    stage: Stage
    fingerprint: str
    state: State
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What executing a step did."""

    step: Step
    action: Literal["done", "skipped"]
    seconds: float
    artifact: Artifact


@dataclass
class Graph:
    """Stages in an order in which each follows its inputs."""

    workspace: Storage
    stages: Sequence[Stage]
    sources: Sources = field(default_factory=Sources)
    """The source code that does the work."""
    fingerprints: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprints = {}
        for stage in self.stages:
            self.fingerprints[stage.name] = digest(
                {
                    "stage": stage.name,
                    "version": stage.version,
                    "settings": stage.settings,
                    "inputs": [self.fingerprints[name] for name in stage.inputs],
                }
            )

    def output(self, name: str) -> Storage:
        """The folder of the stage ``name``."""
        return self.workspace.folder(name, self.fingerprints[name])

    def folders(self, stages: Iterable[Stage]) -> list[str]:
        """Folders of the workspace that hold what ``stages`` make and need."""
        stages = list(stages)
        folders = [f"{stage.name}/{self.fingerprints[stage.name]}" for stage in stages]
        folders += [folder for stage in stages for folder in stage.keeps]
        return folders + [f"{SHARDS}/{stage.writes}" for stage in stages if stage.writes is not None]

    def record(self, recipe: Any, *, beside: Iterable[str] = ()) -> str:
        """Writes down that ``recipe`` is run in the workspace; returns the id of the record.

        It keeps what the stages make, and the folders ``beside`` that.
        """
        return record_run(
            self.workspace,
            stages=self.fingerprints,
            locks={stage.name: self.lock_name(stage) for stage in self.stages},
            folders=[*self.folders(self.stages), *beside],
            settings=recipe,
        )

    def lock_name(self, stage: Stage) -> str:
        """What a run holds while it works on ``stage``."""
        return stage.writes or f"{stage.name}-{self.fingerprints[stage.name]}"

    def artifact(self, name: str) -> Artifact | None:
        """The finished artifact of the stage ``name``, if there is one.

        Raises:
            DamagedFileError: there is one, and the document that committed it cannot be read.
        """
        output = self.output(name)
        if not output.exists(ARTIFACT):
            return None
        return Artifact(name, self.fingerprints[name], output, read_document(output))

    def plan(
        self,
        *,
        from_stage: str | None = None,
        until_stage: str | None = None,
        force: Sequence[str] = (),
        rerun_changed: bool = False,
    ) -> list[Step]:
        """What running the stages ``from_stage`` … ``until_stage`` would do.

        Stages ``force``, and with ``rerun_changed`` those whose code has changed since, do all of their work again.

        Raises:
            ValueError: a name is not a stage, the range is empty, or a stage before ``from_stage`` is not
                finished.
        """
        names = [stage.name for stage in self.stages]
        for option, name in (
            ("from_stage", from_stage),
            ("until_stage", until_stage),
            *(("force", name) for name in force),
        ):
            if name is not None and name not in names:
                raise ValueError(f"{option} is {name!r}; this recipe's stages are: {', '.join(names)}")
        first = names.index(from_stage) if from_stage else 0
        last = names.index(until_stage) if until_stage else len(names) - 1
        if last < first:
            raise ValueError(
                f"until_stage is {until_stage!r}, which comes before from_stage, {from_stage!r}; the order is: "
                f"{', '.join(names)}"
            )
        steps: list[Step] = []
        rerun: set[str] = set()
        needed = self._needed_by(names[first : last + 1])
        for position, stage in enumerate(self.stages[: last + 1]):
            if stage.name not in needed:
                continue
            invalid = sorted(rerun.intersection(stage.inputs))
            step = self._step(stage, forced=stage.name in force, invalid=invalid, rerun_changed=rerun_changed)
            if step.state != "done":
                if step.state != "damaged":
                    rerun.add(stage.name)
                if position < first:
                    raise ValueError(
                        f"from_stage is {from_stage!r}, but the stage {stage.name!r} before it is {step.state} "
                        f"({step.reason}); start from {stage.name!r}, or leave from_stage out"
                    )
            steps.append(step)
        return steps

    def _needed_by(self, names: Sequence[str]) -> set[str]:
        """``names`` and the stages that they need, directly or through others."""
        needed = set(names)
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed.update(stage.inputs)
        return needed

    def _step(self, stage: Stage, *, forced: bool, invalid: list[str], rerun_changed: bool) -> Step:
        fingerprint = self.fingerprints[stage.name]
        if forced:
            interrupted = left_by_force(self.output(stage.name)) and self._left(stage)
            return Step(stage, fingerprint, "forced", f"asked for, {interrupted}" if interrupted else "asked for")
        try:
            artifact = self.artifact(stage.name)
            lost = stage.lost(artifact) if artifact is not None else None
        except DamagedFileError as error:
            return Step(stage, fingerprint, "damaged", str(error))
        if artifact is not None:
            if any(name in invalid for name in stage.inputs):
                return Step(stage, fingerprint, "outdated", f"{invalid[0]} runs again")
            changed = changed_files(artifact.document.get("sources"), self.sources.digests(stage.run))
            if changed and rerun_changed:
                return Step(stage, fingerprint, "changed", f"{CODE_CHANGED} ({changed})")
            if lost:
                return Step(stage, fingerprint, "damaged", lost)
            return Step(stage, fingerprint, "done", f"{CODE_CHANGED} ({changed})" if changed else "finished")
        if left := self._left(stage):
            changed = changed_files(self._began_with(stage), self.sources.digests(stage.run))
            state: State = "changed" if changed and rerun_changed else "partial"
            return Step(stage, fingerprint, state, f"{left}; {CODE_CHANGED} ({changed})" if changed else left)
        return Step(stage, fingerprint, "missing", self._why_missing(stage))

    def _left(self, stage: Stage) -> str | None:
        """What an interrupted run left, in words; None = nothing, or it cannot be told yet."""
        inputs = {name: found for name in stage.inputs if (found := self._intact(name)) is not None}
        return stage.partial(inputs, self.output(stage.name)) if len(inputs) == len(stage.inputs) else None

    def _place_of_work(self, stage: Stage) -> Storage:
        """Where the stage keeps what it has done so far."""
        return self.output(stage.name) if stage.writes is None else self.workspace.folder(SHARDS, stage.writes)

    def _began_with(self, stage: Stage) -> Any:
        """Digests of the source files by which the kept part of the stage's work was begun; None = not known."""
        with suppress(FileNotFoundError, DamagedFileError):
            return self._place_of_work(stage).read_json(SOURCES)
        return None

    def _begin(self, stage: Stage, *, anew: bool) -> Any:
        """Writes down which code begins the work; says so where other code began what is gone on with."""
        now = self.sources.digests(stage.run)
        began = None if anew else self._began_with(stage)
        if began is None:
            if now:
                self._place_of_work(stage).write_json(SOURCES, now)
            return now
        if changed := changed_files(began, now):
            logger.warning(
                "%s: goes on with what was made before the code changed (%s); to make all of it again: --force %s",
                stage.name,
                changed,
                stage.name,
            )
        return began

    def _intact(self, name: str) -> Artifact | None:
        """The finished artifact of a stage; None also where its document is damaged."""
        try:
            return self.artifact(name)
        except DamagedFileError:
            return None

    def _why_missing(self, stage: Stage) -> str:
        """Names the first setting or input in which the newest artifact of the stage differs."""
        others = []
        for folder in self.workspace.folders(stage.name):
            output = self.workspace.folder(stage.name, folder)
            with suppress(FileNotFoundError, DamagedFileError):
                others.append(read_document(output))
        if not others:
            return "never run"
        # An evaluation of a checkpoint from elsewhere says nothing about one of the recipe's own model.
        alike = [document for document in others if set(document["inputs"]) == set(stage.inputs)]
        newest = max(alike or others, key=lambda document: str(document["finished_at"]))
        if newest["version"] != stage.version:
            return f"the stage's code changed (version {newest['version']} → {stage.version})"
        changed = _differences(newest["settings"], plain(stage.settings))
        if changed:
            return "invalidated by " + "; ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        inputs = [name for name in stage.inputs if newest["inputs"].get(name) != self.fingerprints[name]]
        return f"invalidated by a new {' and '.join(inputs)}" if inputs else "settings that were not there before"

    def execute(self, step: Step, *, tracker: StageTracker, config: Any, trial: TrialHost | None = None) -> Outcome:
        """Runs ``step`` unless it is done, and commits its artifact.

        Where another run works on the same stage it waits for that run, and then takes what it made.
        In a trial of a tuning, ``trial`` is handed to the stage.

        Raises:
            RuntimeError: an input is missing, or another process took the stage over.
        """
        found = self._intact(step.stage.name)
        if step.state == "done" and found is not None:
            return Outcome(step, "skipped", 0.0, found)
        with held(self.workspace, self.lock_name(step.stage)) as lock:
            found = self._intact(step.stage.name)
            if step.state in ("missing", "partial") and found is not None:
                logger.info("%s: another run has finished it meanwhile", step.stage.name)
                return Outcome(step, "skipped", 0.0, found)
            return self._run(step, lock, tracker=tracker, config=config, trial=trial)

    def _run(self, step: Step, lock: Lock, *, tracker: StageTracker, config: Any, trial: TrialHost | None) -> Outcome:
        stage, output = step.stage, self.output(step.stage.name)
        # The same command again goes on where an interrupted one was, also where it asks for everything anew.
        anew = step.state in ANEW and not (step.state == "forced" and left_by_force(output))
        if anew:
            discard(output)
        asked = step.state in ("forced", "changed")
        if asked:
            output.write_json(FORCED, {"since": datetime.now(UTC).isoformat(timespec="seconds")})
        inputs: dict[str, Artifact] = {}
        for name in stage.inputs:
            artifact = self.artifact(name)
            if artifact is None:
                raise RuntimeError(f"stage {stage.name!r} needs {name!r}, which is not finished; run {name!r} first")
            inputs[name] = artifact
        # A pool keeps its rows where an input runs again.
        sources = self._begin(stage, anew=anew and (asked or stage.writes is None))
        started = time.monotonic()
        context = StageContext(self.workspace, output, step.fingerprint, inputs, tracker, forced=asked, trial=trial)
        counts = dict(stage.run(context))
        seconds = time.monotonic() - started
        document = {
            "stage": stage.name,
            "fingerprint": step.fingerprint,
            "version": stage.version,
            "settings": plain(stage.settings),
            "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
            "counts": counts,
            "seconds": round(seconds, 2),
            "versions": versions(),
            "sources": sources,
            "config": plain(config),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        lock.check()
        output.write_json(ARTIFACT, document)
        return Outcome(step, "done", seconds, Artifact(stage.name, step.fingerprint, output, document))


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """``name old → new`` for every leaf in which two documents differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path} {old} → {new}"]
