"""The stage graph: fingerprints, plan, execution.

A stage is identified by content: its fingerprint is a digest of its name, its version, its
settings and the fingerprints of its inputs. All fingerprints are known before anything runs, so
a plan is free. A finished stage has an ``artifact.json`` in ``<workspace>/<stage>/<fingerprint>``,
written last; a stage without one is run, and goes on where an interrupted run left it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pipelines.locks import Lock, held
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

ARTIFACT = "artifact.json"
_FINGERPRINT_LENGTH = 16
_VERSIONED = ("torch", "ray", "pyarrow", "open_clip_torch", "decord", "av", "numpy", "hbi-on-ray")

State = Literal["done", "partial", "missing", "forced", "outdated"]
"""``forced``: asked for. ``outdated``: done, but an input runs again."""
Counts = Mapping[str, int | float]


def plain(value: Any) -> Any:
    """``value`` as JSON types; dataclasses become mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(document: Any) -> str:
    """Hex digest of a JSON-like document, whatever the order of its keys."""
    text = json.dumps(plain(document), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


@dataclass(frozen=True)
class Artifact:
    """What a finished stage left: a folder, and the document that committed it."""

    stage: str
    fingerprint: str
    storage: Storage
    document: Mapping[str, Any]

    @property
    def counts(self) -> Counts:
        """Rows, errors and other numbers that the stage reported."""
        return self.document["counts"]  # type: ignore[no-any-return]


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


class StageTracker:
    """Receives what a stage has to say; this one only writes to the log."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """One point of each named curve."""

    def log_batch(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Many points at once: (step, metrics)."""
        for step, metrics in points:
            self.log_metrics(metrics, step)

    def log_document(self, name: str, document: Any) -> None:
        """A JSON document under the file name ``name``."""

    def log_model(self, folder: Storage) -> None:
        """The trained model in ``folder``."""

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """The stage ended."""


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

    def lock_name(self, stage: Stage) -> str:
        """What a run holds while it works on ``stage``."""
        return stage.writes or f"{stage.name}-{self.fingerprints[stage.name]}"

    def artifact(self, name: str) -> Artifact | None:
        """The finished artifact of the stage ``name``, if there is one."""
        output = self.output(name)
        if not output.exists(ARTIFACT):
            return None
        return Artifact(name, self.fingerprints[name], output, output.read_json(ARTIFACT))

    def plan(
        self, *, from_stage: str | None = None, until_stage: str | None = None, force: Sequence[str] = ()
    ) -> list[Step]:
        """What running the stages ``from_stage`` … ``until_stage`` would do.

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
        for position, stage in enumerate(self.stages[: last + 1]):
            step = self._step(stage, forced=stage.name in force, invalid=sorted(rerun.intersection(stage.inputs)))
            if step.state != "done":
                rerun.add(stage.name)
                if position < first:
                    raise ValueError(
                        f"from_stage is {from_stage!r}, but the stage {stage.name!r} before it is {step.state} "
                        f"({step.reason}); start from {stage.name!r}, or leave from_stage out"
                    )
            steps.append(step)
        return steps

    def _step(self, stage: Stage, *, forced: bool, invalid: list[str]) -> Step:
        fingerprint = self.fingerprints[stage.name]
        if forced:
            return Step(stage, fingerprint, "forced", "asked for")
        if self.artifact(stage.name) is not None:
            if any(name in invalid for name in stage.inputs):
                return Step(stage, fingerprint, "outdated", f"{invalid[0]} runs again")
            return Step(stage, fingerprint, "done", "finished")
        inputs = {name: found for name in stage.inputs if (found := self.artifact(name)) is not None}
        if len(inputs) == len(stage.inputs) and (left := stage.partial(inputs, self.output(stage.name))):
            return Step(stage, fingerprint, "partial", left)
        return Step(stage, fingerprint, "missing", self._why_missing(stage))

    def _why_missing(self, stage: Stage) -> str:
        """Names the first setting or input in which the newest artifact of the stage differs."""
        others = []
        for folder in self.workspace.folders(stage.name):
            output = self.workspace.folder(stage.name, folder)
            if output.exists(ARTIFACT):
                others.append(output.read_json(ARTIFACT))
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

    def execute(self, step: Step, *, tracker: StageTracker, config: Any) -> Outcome:
        """Runs ``step`` unless it is done, and commits its artifact.

        Where another run works on the same stage it waits for that run, and then takes what it made.

        Raises:
            RuntimeError: an input is missing, or another process took the stage over.
        """
        found = self.artifact(step.stage.name)
        if step.state == "done" and found is not None:
            return Outcome(step, "skipped", 0.0, found)
        with held(self.workspace, self.lock_name(step.stage)) as lock:
            found = self.artifact(step.stage.name)
            if step.state in ("missing", "partial") and found is not None:
                logger.info("%s: another run has finished it meanwhile", step.stage.name)
                return Outcome(step, "skipped", 0.0, found)
            return self._run(step, lock, tracker=tracker, config=config)

    def _run(self, step: Step, lock: Lock, *, tracker: StageTracker, config: Any) -> Outcome:
        stage, output = step.stage, self.output(step.stage.name)
        if step.state in ("forced", "outdated"):
            output.delete("")
        inputs: dict[str, Artifact] = {}
        for name in stage.inputs:
            artifact = self.artifact(name)
            if artifact is None:
                raise RuntimeError(f"stage {stage.name!r} needs {name!r}, which is not finished; run {name!r} first")
            inputs[name] = artifact
        started = time.monotonic()
        context = StageContext(self.workspace, output, step.fingerprint, inputs, tracker, forced=step.state == "forced")
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
            "config": plain(config),
            "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
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


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
