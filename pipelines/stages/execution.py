"""Running a step of a plan: under its lock, from where an interrupted run stopped, and committed at the end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pipelines.stages.plan import SOURCES, Graph, State, Step
from pipelines.stages.sources import changed_files
from pipelines.stages.stage import Stage, StageContext
from pipelines.tracker import StageTracker
from pipelines.train.trial_host import TrialHost
from pipelines.workspace.artifact import ARTIFACT, FORCED, Artifact, discard, left_by_force, plain, versions
from pipelines.workspace.locks import Lock, held

logger = logging.getLogger(__name__)

# A damaged stage is not among them: what is whole of it stays, and only the rest is made again.
ANEW: tuple[State, ...] = ("forced", "changed", "outdated")


@dataclass(frozen=True)
class Outcome:
    """What executing a step did."""

    step: Step
    action: Literal["done", "skipped"]
    seconds: float
    artifact: Artifact


def execute_step(
    graph: Graph, step: Step, *, tracker: StageTracker, config: Any, trial: TrialHost | None = None
) -> Outcome:
    """Runs ``step`` unless it is done, and commits its artifact.

    If another run works on the same stage, it waits for that run and then uses its result. In a trial of a tuning,
    ``trial`` is passed to the stage.

    Raises:
        RuntimeError: an input is missing, or another process took the stage over.
    """
    found = graph.intact(step.stage.name)
    if step.state == "done" and found is not None:
        return Outcome(step, "skipped", 0.0, found)
    with held(graph.workspace, graph.lock_name(step.stage)) as lock:
        found = graph.intact(step.stage.name)
        # In the other states the artifact that is there is the one to be replaced or mended.
        if step.state in ("missing", "partial") and found is not None:
            logger.info("%s: another run has finished it meanwhile", step.stage.name)
            return Outcome(step, "skipped", 0.0, found)
        return _run(graph, step, lock, tracker=tracker, config=config, trial=trial)


def _run(
    graph: Graph, step: Step, lock: Lock, *, tracker: StageTracker, config: Any, trial: TrialHost | None
) -> Outcome:
    stage, output = step.stage, graph.output(step.stage.name)
    # A repeated command continues an interrupted run, even with --force: work that the force has redone is not redone.
    anew = step.state in ANEW and not (step.state == "forced" and left_by_force(output))
    if anew:
        discard(output)
    if step.state in ("forced", "changed"):
        output.write_json(FORCED, {"since": datetime.now(UTC).isoformat(timespec="seconds")})
    inputs: dict[str, Artifact] = {}
    for name in stage.inputs:
        artifact = graph.artifact(name)
        if artifact is None:
            raise RuntimeError(f"stage {stage.name!r} needs {name!r}, which is not finished; run {name!r} first")
        inputs[name] = artifact
    forced = step.state == "changed" or (step.state == "forced" and not stage.repeats_errors)
    # A pool that keeps rows, as where only an input runs again, keeps the record of the code that made them.
    sources = _begin(graph, stage, anew=anew and (forced or stage.writes is None))
    started = time.monotonic()
    context = StageContext(graph.workspace, output, inputs, tracker, forced=forced, trial=trial)
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


def _begin(graph: Graph, stage: Stage, *, anew: bool) -> Any:
    """Records which code begins the work; warns if the work to be continued was begun by other code."""
    now = graph.sources.digests(stage.run)
    began = None if anew else graph.began_with(stage)
    if began is None:
        # Nothing is recorded for a stage whose code is not this project's.
        if now:
            graph.place_of_work(stage).write_json(SOURCES, now)
        return now
    if changed := changed_files(began, now):
        logger.warning(
            "%s: goes on with what was made before the code changed (%s); to make all of it again: --rerun_changed",
            stage.name,
            changed,
        )
    return began
