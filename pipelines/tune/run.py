"""Runs a tuning from its first trial to its report, and the stages that its trials need.

The stages before the tuned one are run here, each distinct one once. A trial must not run them, because it would hold
the CPUs that they wait for. A trial is started when its inputs are done. Meanwhile other trials keep running, and free
their CPUs when they end.
"""

from __future__ import annotations

from functools import partial

from pipelines.graph import make_graph
from pipelines.resources.placement import checked_nodes, require_lasting
from pipelines.stages.data_check import finished, known_data
from pipelines.stages.places import places_of
from pipelines.stages.weights_check import WeightsChecks
from pipelines.tune.checks import require_tuning_data
from pipelines.tune.driver import Driver
from pipelines.tune.inputs import InputStages
from pipelines.tune.journal import Journal, TrialRecord
from pipelines.tune.tracking import TuningTracker
from pipelines.tune.tuning import POPULATION, Tuning
from pipelines.workspace.storage import Storage


def run_tuning(tuning: Tuning) -> None:
    """Does the missing parts of the tuning, from its first trial to its report.

    Raises:
        PlacementError: the nodes of the cluster do not see the folders of the tuning.
        ValueError: weights do not fit, there is nothing to validate with, or no training reached its end.
    """
    require_lasting(tuning.graph.workspace)
    steps = tuning.graph.plan(until_stage=tuning.config.stage)
    known = known_data(tuning.graph, finished(steps))
    require_tuning_data(tuning, known)
    weights = WeightsChecks()
    weights.require(steps, tuning.recipe)
    weights.require_answering(steps, tuning.recipe, known.vocabulary)
    # Baselines are trained last, so unfit weights of theirs would show only when all trials are done.
    for values in tuning.config.baselines.values():
        baseline = tuning.recipe_of(values)
        graph = make_graph(baseline)
        planned = graph.plan(until_stage=tuning.config.stage)
        weights.require(planned, baseline)
        # It may have answers of its own.
        weights.require_answering(planned, baseline, known_data(graph, finished(planned)).vocabulary)
    from pipelines.resources.allotment import allot
    from pipelines.resources.ray_session import ray_session

    recipe = tuning.recipe
    # A trial with a worker group needs the dashboard: Ray Train learns from it that the trial was ended, and frees its
    # resources.
    dashboard = tuning.resources.workers > 1
    with (
        ray_session(recipe.resources, dashboard=dashboard),
        checked_nodes(tuning.graph.workspace, places_of(tuning.graph, recipe)),
    ):
        allot([*(stage.name for stage in tuning.shared), tuning.config.stage], recipe.resources)
        tracker = TuningTracker(tuning)
        try:
            with InputStages(tuning.config.stage, tracker, weights) as inputs:
                shared = [stage.name for stage in tuning.shared]
                inputs.run(tuning.graph, shared, recipe, partial(require_tuning_data, tuning))
                _run_trials(tuning, tracker, inputs)
        except BaseException as error:
            # Also after SIGTERM, which jobs.settings.run_job turns into a KeyboardInterrupt.
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.finish("FINISHED")


def _run_trials(tuning: Tuning, tracker: TuningTracker, inputs: InputStages) -> None:
    # Imported here because they import Matplotlib and Ray, which reads the session's environment variables on import.
    from pipelines.tune.pictures import pictures_of
    from pipelines.tune.proposals import ListedTrials, ProposedTrials, final_records, population
    from pipelines.tune.ray_tune import concurrent_trials, run_population, run_to_the_end, run_with_halving
    from pipelines.tune.results import Results

    journal, scheduler = Journal(tuning.storage), tuning.config.scheduler.name

    def artifact(record: TrialRecord) -> Storage:
        return tuning.graph.workspace.folder(tuning.config.stage, record.fingerprint)

    def member(record: TrialRecord) -> Storage:
        return tuning.storage.folder(POPULATION, record.name)

    if scheduler == "pbt":
        members = ListedTrials(population(tuning, journal))
        # No limit, because run_population takes all members from the driver before one of them runs.
        with Driver(tuning, "trial", members, journal, inputs.ready, tracker, member, limit=None) as driver:
            run_population(tuning, driver)
    else:
        proposed, prepared = ProposedTrials(tuning, journal), tuning.shares_inputs
        limit = concurrent_trials(tuning)
        with Driver(
            tuning, "trial", proposed, journal, inputs.ready, tracker, artifact, limit, prepared=prepared
        ) as driver:
            if scheduler == "asha":
                run_with_halving(tuning, driver, journal)
            else:
                run_to_the_end(tuning, driver)
    # Seeds change labels and estimators, so inputs of the ranking may be missing where the trials shared all of them.
    records = final_records(tuning, journal)
    finals, prepared, limit = ListedTrials(records), tuning.inputs_are_done(records), concurrent_trials(tuning)
    with Driver(tuning, "final", finals, journal, inputs.ready, tracker, artifact, limit, prepared=prepared) as driver:
        run_to_the_end(tuning, driver)
    results = Results.of(tuning, journal)
    results.write(tracker, pictures_of(results))
