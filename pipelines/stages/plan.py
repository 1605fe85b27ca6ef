"""Stages that depend on each other: their fingerprints, and a plan of what a run has to do.

A stage is identified by content: its fingerprint is a digest of its name, its version, its
settings and the fingerprints of its inputs. All fingerprints are known before anything runs, so a plan costs nothing.
Code is not part of the fingerprint: an artifact records digests of the source files that made it, and a plan names
those that have changed. A finished stage has an ``artifact.json`` in ``<workspace>/<stage>/<fingerprint>``, written
last. A stage without one is run, and continues what an interrupted run left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.stages.sources import Sources, changed_files
from pipelines.stages.stage import Stage
from pipelines.workspace.artifact import ARTIFACT, Artifact, digest, left_by_force, plain, read_document
from pipelines.workspace.errors import DamagedFileError, examples
from pipelines.workspace.runs import record_run
from pipelines.workspace.shards import SHARDS
from pipelines.workspace.storage import Storage

State = Literal["done", "partial", "missing", "forced", "changed", "outdated", "damaged"]
"""``forced``: the user asked for it. ``changed``: made by other code, and made again for that reason. ``outdated``:
done or begun, but an input runs again. ``damaged``: done, but a part is lost; the same is made again, so the stages
that depend on it stay valid."""

CODE_CHANGED = "code changed since"

SOURCES = "code/sources.json"
"""File beside a stage's work: digests of the source files that began it."""


@dataclass(frozen=True)
class Step:
    """A stage in a plan."""

    stage: Stage
    fingerprint: str
    state: State
    reason: str


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

        The record keeps the results of the stages and the folders ``beside`` them from being removed.
        """
        return record_run(
            self.workspace,
            stages=self.fingerprints,
            locks={stage.name: self.lock_name(stage) for stage in self.stages},
            folders=[*self.folders(self.stages), *beside],
            settings=recipe,
        )

    def lock_name(self, stage: Stage) -> str:
        """Name of the lock that a run holds while it works on ``stage``."""
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
        needed = [stage.name for stage in self.with_inputs(*names[first : last + 1])]
        for name in force:
            if name not in needed:
                raise ValueError(
                    f"force is {name!r}, which is not among the stages of this run: {', '.join(needed)}; leave it out, "
                    "or let from_stage and until_stage take it in"
                )
        steps: list[Step] = []
        rerun: set[str] = set()
        for position, stage in enumerate(self.stages[: last + 1]):
            if stage.name not in needed:
                continue
            invalid = sorted(rerun.intersection(stage.inputs))
            step = self._step(stage, forced=stage.name in force, invalid=invalid, rerun_changed=rerun_changed)
            if step.state != "done":
                # Damaged is mended to the same content, so the stages behind it stay as they are.
                if step.state != "damaged":
                    rerun.add(stage.name)
                if position < first:
                    raise ValueError(
                        f"from_stage is {from_stage!r}, but the stage {stage.name!r} before it is {step.state} "
                        f"({step.reason}); start from {stage.name!r}, or leave from_stage out"
                    )
            steps.append(step)
        return steps

    def with_inputs(self, *names: str) -> list[Stage]:
        """The stages ``names`` and all that they need, directly or through others, in order."""
        needed = set(names)
        for stage in reversed(self.stages):
            if stage.name in needed:
                needed.update(stage.inputs)
        return [stage for stage in self.stages if stage.name in needed]

    def _step(self, stage: Stage, *, forced: bool, invalid: list[str], rerun_changed: bool) -> Step:
        fingerprint, output = self.fingerprints[stage.name], self.output(stage.name)
        # What was begun with an input that runs again begins anew. Rows of a pool stay: each has a key of what it is.
        anew = bool(invalid) and stage.writes is None
        if forced and not (anew and left_by_force(output)):
            interrupted = left_by_force(output) and self._left(stage)
            return Step(stage, fingerprint, "forced", f"asked for, {interrupted}" if interrupted else "asked for")
        if anew and output.exists(""):
            return Step(stage, fingerprint, "outdated", f"{invalid[0]} runs again")
        try:
            artifact = self.artifact(stage.name)
            lost = stage.lost(artifact) if artifact is not None else None
        except DamagedFileError as error:
            return Step(stage, fingerprint, "damaged", str(error))
        if artifact is not None:
            # Before changed code and lost parts, because an outdated stage is made from its start anyway.
            if invalid:
                return Step(stage, fingerprint, "outdated", f"{invalid[0]} runs again")
            changed = changed_files(artifact.document.get("sources"), self.sources.digests(stage.run))
            if changed and rerun_changed:
                return Step(stage, fingerprint, "changed", f"{CODE_CHANGED} ({changed})")
            if lost:
                return Step(stage, fingerprint, "damaged", lost)
            return Step(stage, fingerprint, "done", f"{CODE_CHANGED} ({changed})" if changed else "finished")
        if left := self._left(stage):
            changed = changed_files(self.began_with(stage), self.sources.digests(stage.run))
            state: State = "changed" if changed and rerun_changed else "partial"
            return Step(stage, fingerprint, state, f"{left}; {CODE_CHANGED} ({changed})" if changed else left)
        return Step(stage, fingerprint, "missing", self._why_missing(stage))

    def _left(self, stage: Stage) -> str | None:
        """What an interrupted run left, in words; None = nothing, or not known before the inputs are finished."""
        inputs = {name: found for name in stage.inputs if (found := self.intact(name)) is not None}
        return stage.partial(inputs, self.output(stage.name)) if len(inputs) == len(stage.inputs) else None

    def place_of_work(self, stage: Stage) -> Storage:
        """Where the stage keeps what it has done so far."""
        return self.output(stage.name) if stage.writes is None else self.workspace.folder(SHARDS, stage.writes)

    def began_with(self, stage: Stage) -> Any:
        """Digests of the source files that began the unfinished work of a stage; None = not known."""
        with suppress(FileNotFoundError, DamagedFileError):
            return self.place_of_work(stage).read_json(SOURCES)
        return None

    def intact(self, name: str) -> Artifact | None:
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
        # Compare only artifacts with the same kinds of inputs: an evaluation of a given checkpoint has others.
        alike = [document for document in others if set(document["inputs"]) == set(stage.inputs)]
        newest = max(alike or others, key=lambda document: str(document["finished_at"]))
        if newest["version"] != stage.version:
            return f"the stage's code changed (version {newest['version']} → {stage.version})"
        changed = _differences(newest["settings"], plain(stage.settings))
        if changed:
            return f"invalidated by {examples(changed, separator='; ')}"
        inputs = [name for name in stage.inputs if newest["inputs"].get(name) != self.fingerprints[name]]
        # A new setting whose value is null differs in the digest alone.
        return f"invalidated by a new {' and '.join(inputs)}" if inputs else "settings that were not there before"


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """``name old → new`` for every leaf in which two documents differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path} {old} → {new}"]
