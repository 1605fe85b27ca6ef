"""What a search would do, and what it has done: text for a terminal. Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.tables import plan_table, table
from pipelines.tune.journal import Journal, Phase
from pipelines.tune.search import Search
from pipelines.workspace.artifact import digest, plain

SUMMARY = "summary.json"
"""Written last: a search that has one is done, as far as it was asked for."""
RANKING = "ranking.txt"
BEST_RECIPE = "best_recipe.yaml"


def asked_for(search: Search) -> str:
    """A digest of how far the search is to go: the summary of a shorter one says nothing about it."""
    config = search.config
    return digest([config.trials, config.finalists, config.seeds, config.baselines, config.map])


def is_done(search: Search) -> bool:
    """Whether there is a summary of all that is asked for."""
    return search.storage.exists(SUMMARY) and search.storage.read_json(SUMMARY)["asked_for"] == asked_for(search)


def plan_of(search: Search) -> str:
    """The space, the stages that all trials share with their states, and the trials that there are."""
    config, document = search.config, plain(search.recipe)
    space = table(
        ["field", "drawn from", "when", "the recipe has", "run once per value"],
        [
            [
                parameter.field,
                str(parameter.domain),
                "; ".join(f"{name} is {' or '.join(map(str, values))}" for name, values in parameter.when.items()),
                str(_value(document, parameter.field)),
                ", ".join(stage.name for stage in search.graph.stages if stage.name in search.readers[parameter.field]),
            ]
            for parameter in search.space.parameters
        ],
    )
    shared = {stage.name for stage in search.shared}
    steps = [step for step in search.graph.plan(until_stage=config.stage) if step.stage.name in shared]
    journal = Journal(search.storage)
    best = "largest" if config.direction == "max" else "smallest"
    trained = (config.finalists + len(config.baselines)) * config.seeds
    return "\n\n".join(
        [
            f"Search {search.fingerprint} in {search.storage.uri}: the {best} {config.metric} of {config.stage}, "
            f"sampler {config.sampler.name}, scheduler {config.scheduler.name}",
            space,
            f"Stages that all trials share\n\n{plan_table(steps)}",
            f"Trials:        {config.trials}{_states(journal, 'search')}\n"
            f"Final ranking: {trained} trainings: {config.finalists} finalists and {len(config.baselines)} baselines, "
            f"{config.seeds} seeds each{_states(journal, 'final')}",
        ]
    )


def _states(journal: Journal, phase: Phase) -> str:
    counts: Counter[str] = Counter(record.state for record in journal.of(phase))
    names = {"finished": "finished", "stopped": "ended early", "failed": "failed", "running": "to go on with"}
    known = [f"{counts[state]} {name}" for state, name in names.items() if counts[state]]
    return f", of which {', '.join(known)}" if known else ""


def _value(document: Any, field: str) -> Any:
    for part in field.split("."):
        document = (document or {}).get(part)
    return document
