"""Runs a search: shared stages, trials, the final ranking, and what comes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipelines.resources.placement import checked_nodes, require_lasting
from pipelines.stages.places import places_of
from pipelines.tune.search import Search
from pipelines.workspace.records import MANIFEST_FILE
from pipelines.workspace.storage import Storage

if TYPE_CHECKING:
    from pipelines.tune.inputs import InputStages
    from pipelines.tune.journal import TrialRecord
    from pipelines.tune.tracking import SearchTracker

logger = logging.getLogger(__name__)


def run_search(search: Search) -> None:
    """Does what is missing of the search, from its first trial to its report.

    Raises:
        PlacementError: the nodes of the cluster do not see the folders of the search.
        ValueError: there is nothing to validate with, or no training reached its end.
    """
    require_lasting(search.graph.workspace)
    from pipelines.resources.allotment import allot
    from pipelines.resources.ray_session import ray_session

    recipe = search.recipe
    # Ray Train learns from the dashboard that a trial with a worker group was ended, and frees its resources.
    dashboard = search.resources.workers > 1
    with (
        ray_session(recipe.resources, dashboard=dashboard),
        checked_nodes(search.graph.workspace, places_of(search.graph, recipe)),
    ):
        allot([*(stage.name for stage in search.shared), search.config.stage], recipe.resources)
        # They import Ray, whose switches the session sets first.
        from pipelines.tune.inputs import InputStages
        from pipelines.tune.tracking import SearchTracker

        tracker = SearchTracker(search)
        try:
            inputs = InputStages(search.config.stage, tracker)
            inputs.run(search.graph, [stage.name for stage in search.shared], recipe)
            _require_validation(search)
            _run_trials(search, tracker, inputs)
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.finish("FINISHED")


def _require_validation(search: Search) -> None:
    """Raises ``ValueError`` where nothing is held out: every trial would have the same score."""
    manifest = search.graph.artifact("manifest")
    if manifest is None or "manifest" not in {stage.name for stage in search.shared}:
        return
    rows = manifest.storage.read_table(MANIFEST_FILE, columns=["split", "questions"])
    held_out = pc.any(pc.equal(rows.column("split"), "val")).as_py()
    if search.config.stage == "video_qa":
        held_out = any(question["split"] == "val" for row in rows.column("questions").to_pylist() for question in row)
    if not held_out:
        raise ValueError(
            "the data has no validation split, so trials cannot be compared; set data.validation_videos, or give the "
            "data a split val"
        )


def _run_trials(search: Search, tracker: SearchTracker, inputs: InputStages) -> None:
    from pipelines.tune.driver import Driver
    from pipelines.tune.finals import final_records
    from pipelines.tune.journal import Journal
    from pipelines.tune.population import POPULATION
    from pipelines.tune.queues import ListedTrials, ProposedTrials, population
    from pipelines.tune.report import Results
    from pipelines.tune.rounds import concurrent_trials, run_population, run_to_the_end, run_with_halving

    journal, scheduler = Journal(search.storage), search.config.scheduler.name

    def artifact(record: TrialRecord) -> Storage:
        return search.graph.workspace.folder(search.config.stage, record.fingerprint)

    def member(record: TrialRecord) -> Storage:
        return search.storage.folder(POPULATION, record.name)

    if scheduler == "pbt":
        members = ListedTrials(population(search, journal))
        with Driver(search, "search", members, journal, inputs, tracker, member, limit=None) as driver:
            run_population(search, driver)
    else:
        proposed = ProposedTrials(search, journal)
        limit = concurrent_trials(search)
        with Driver(search, "search", proposed, journal, inputs, tracker, artifact, limit) as driver:
            if scheduler == "asha":
                run_with_halving(search, driver, journal)
            else:
                run_to_the_end(search, driver)
    finals = ListedTrials(final_records(search, journal))
    with Driver(search, "final", finals, journal, inputs, tracker, artifact, concurrent_trials(search)) as driver:
        run_to_the_end(search, driver)
    Results.of(search, journal).write(tracker)
