"""Runs a plan: one Ray, one MLflow parent run, stage after stage."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipelines.configs import Recipe
from pipelines.progress import format_seconds
from pipelines.runs import record_run
from pipelines.stages import Graph, Outcome, Step

logger = logging.getLogger(__name__)


def run_plan(graph: Graph, steps: Sequence[Step], recipe: Recipe) -> list[Outcome]:
    """Executes ``steps``; where all are done, neither Ray nor MLflow is started."""
    record_run(graph, recipe)
    if all(step.state == "done" for step in steps):
        return [_skip(graph, step) for step in steps]
    from pipelines.ray_session import ray_session
    from pipelines.tracking import PipelineTracker

    outcomes: list[Outcome] = []
    with ray_session(recipe.resources):
        tracker = PipelineTracker(graph.workspace, recipe.tracking, recipe)
        tracker.log_fingerprints(graph.fingerprints)
        try:
            for step in steps:
                if step.state == "done":
                    outcomes.append(_skip(graph, step))
                    continue
                logger.info("%s: %s (%s), fingerprint %s", step.stage.name, step.state, step.reason, step.fingerprint)
                stage_tracker = tracker.stage(step.stage.name, step.fingerprint, step.stage.settings)
                try:
                    outcome = graph.execute(step, tracker=stage_tracker, config=recipe)
                except BaseException as error:
                    stage_tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                    raise
                counts = {name: value for name, value in outcome.artifact.counts.items() if "/" not in name}
                stage_tracker.log_metrics({f"count/{name}": value for name, value in counts.items()})
                stage_tracker.log_document("artifact.json", outcome.artifact.document)
                stage_tracker.finish("FINISHED")
                logger.info("%s: done in %s", step.stage.name, format_seconds(outcome.seconds))
                outcomes.append(outcome)
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        final = outcomes[-1].artifact.counts
        tracker.log_metrics({f"{outcomes[-1].step.stage.name}/{name}": value for name, value in final.items()})
        tracker.finish("FINISHED")
        return outcomes


def _skip(graph: Graph, step: Step) -> Outcome:
    artifact = graph.artifact(step.stage.name)
    assert artifact is not None
    return Outcome(step, "skipped", 0.0, artifact)
