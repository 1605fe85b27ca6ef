"""Runs a plan: one Ray, where stages need it, one MLflow parent run, stage after stage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipelines.progress import format_seconds
from pipelines.recipe.recipe import Recipe
from pipelines.resources.placement import checked_nodes, require_lasting
from pipelines.stages.data_check import TELLING, finished, known_data, pending
from pipelines.stages.execution import Outcome, execute_step
from pipelines.stages.places import places_of
from pipelines.stages.plan import Graph, Step
from pipelines.stages.report import REPORT
from pipelines.stages.weights_check import require_answering_weights, require_weights
from pipelines.tracking.address import tracking_uri
from pipelines.tracking.mlflow_runs import PipelineTracker, record_missed
from pipelines.workspace.artifact import ARTIFACT

logger = logging.getLogger(__name__)


def run_plan(graph: Graph, steps: Sequence[Step], recipe: Recipe) -> list[Outcome]:
    """Executes ``steps``. If all are done, MLflow is only started to record what it has missed.

    Ray is only started if a stage that is not done has tasks, actors or workers.

    Raises:
        FileNotFoundError, ValueError: ``MLFLOW_TRACKING_URI`` names no server or database, the data set does not hold
            what the stages need, or weights that a stage starts from cannot be had, or do not fit.
        PlacementError: the nodes of the cluster do not see the folders of the run.
    """
    require_lasting(graph.workspace)
    tracking_uri(graph.workspace)  # a wrong one is refused before Ray starts
    # Before any work, so that jobs.gc does not take a folder of this run for left over.
    graph.record(recipe)
    if all(step.state == "done" for step in steps):
        record_missed(graph.workspace)
        return [_skip(graph, step) for step in steps]
    # Data before weights: reading tables is cheaper than loading models.
    to_come, known = pending(steps), finished(steps)
    data = known_data(graph, known)
    data.require(recipe, to_come)
    require_weights(steps, recipe)
    require_answering_weights(steps, recipe, data.vocabulary)
    outcomes: list[Outcome] = []
    with _cluster(graph, to_come, recipe):
        tracker = PipelineTracker(graph.workspace, recipe.tracking, recipe)
        tracker.log_fingerprints(graph.fingerprints)
        try:
            for step in steps:
                if step.state == "done":
                    outcomes.append(_skip(graph, step))
                    continue
                outcomes.append(run_step(graph, step, tracker, recipe))
                known.add(step.stage.name)
                # More of the data has just become known.
                if step.stage.name in TELLING:
                    data = known_data(graph, known)
                    data.require(recipe, to_come)
                    require_answering_weights(steps, recipe, data.vocabulary)
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        for outcome in results(outcomes):
            counts = outcome.artifact.counts
            tracker.run.log_metrics({f"{outcome.step.stage.name}/{name}": value for name, value in counts.items()})
        tracker.finish("FINISHED")
        return outcomes


@contextmanager
def _cluster(graph: Graph, stages: Sequence[str], recipe: Recipe) -> Iterator[None]:
    """Ray, with what ``stages`` take of it; none where this process does all of their work."""
    from pipelines.resources.allotment import allot, need_ray
    from pipelines.resources.ray_session import ray_session

    if not need_ray(stages, recipe.resources):
        logger.info("this process does all of the work; Ray is not started")
        yield
        return
    with ray_session(recipe.resources), checked_nodes(graph.workspace, places_of(graph, recipe)):
        allot(stages, recipe.resources)
        yield


def results(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The final results of a run: stages that no other stage needs, except the report about all of them."""
    needed = {name for outcome in outcomes if outcome.step.stage.name != REPORT for name in outcome.step.stage.inputs}
    return [outcome for outcome in outcomes if outcome.step.stage.name not in needed]


def run_step(graph: Graph, step: Step, tracker: PipelineTracker, recipe: Recipe) -> Outcome:
    """Executes one step that is not done, as a nested run of ``tracker``."""
    logger.info("%s: %s (%s), fingerprint %s", step.stage.name, step.state, step.reason, step.fingerprint)
    name = step.stage.name
    stage_tracker = tracker.stage(name, step.fingerprint, step.stage.settings, graph.output(name))
    try:
        outcome = execute_step(graph, step, tracker=stage_tracker, config=recipe)
    except BaseException as error:
        stage_tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    # Names with a slash are metrics, which the stage has logged itself, or the amount of work.
    counts = {name: value for name, value in outcome.artifact.counts.items() if "/" not in name}
    stage_tracker.log_metrics({f"count/{name}": value for name, value in counts.items()})
    stage_tracker.log_files(outcome.artifact.storage, [ARTIFACT])
    stage_tracker.finish("FINISHED")
    logger.info("%s: done in %s", step.stage.name, format_seconds(outcome.seconds))
    return outcome


def _skip(graph: Graph, step: Step) -> Outcome:
    artifact = graph.artifact(step.stage.name)
    assert artifact is not None
    return Outcome(step, "skipped", 0.0, artifact)
