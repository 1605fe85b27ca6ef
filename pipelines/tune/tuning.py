"""A tuning of a recipe's settings: what identifies it, the recipes of its trials, what is left of it to do.

Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipelines.graph import make_graph
from pipelines.recipe.fields import flatten, with_values
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TrainResources
from pipelines.recipe.tuning import TuningConfig
from pipelines.stages.plan import Graph
from pipelines.stages.stage import Stage
from pipelines.tables import plan_table, table
from pipelines.tune.journal import FORMER_FOLDER, TRIALS, Journal, Phase, TrialRecord
from pipelines.tune.space import Setting, Space, describe
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.storage import Storage

MakeRecipe = Callable[[Mapping[str, Any]], Recipe]
"""The recipe that a document describes, checked as on the command line; raises ``ValueError``."""

FOLDER = "tune"
"""Of the workspace; a folder per tuning."""

SUMMARY = "summary.json"
"""Written last: a tuning with a summary is done, as far as the summary says."""
RANKING = "ranking.txt"
BEST_RECIPE = "best_recipe.yaml"
POPULATION = "population"
"""Folder that holds a folder per trial of population-based training."""

_HALVES: Mapping[Phase, str] = {"trial": "choosing", "final": "ranking"}


@dataclass(frozen=True)
class Tuning:
    """A search over settings of ``recipe``; :func:`make_tuning` makes and checks one."""

    recipe: Recipe
    """With the changes that the tune file makes for all trials."""
    config: TuningConfig
    space: Space
    make_recipe: MakeRecipe

    @cached_property
    def graph(self) -> Graph:
        """The stages of the recipe itself."""
        return make_graph(self.recipe)

    @cached_property
    def fingerprint(self) -> str:
        """The identity of this tuning.

        The numbers of trials, finalists, seeds and baselines are not part of it: a later run with more of them
        continues the same tuning.
        """
        config = self.config
        return digest(
            {
                "stage": self.graph.fingerprints[config.stage],
                "space": {parameter.field: plain(parameter) for parameter in self.space.parameters},
                **{name: plain(getattr(config, name)) for name in ("metric", "direction", "sampler", "scheduler")},
                # Tunings before there were halves compare other figures.
                "halves": half_of(config.stage, "trial"),
            }
        )

    @cached_property
    def folder(self) -> str:
        """The folder of the tuning, in the workspace."""
        former = self.graph.workspace.folder(FORMER_FOLDER, self.fingerprint)
        return f"{FORMER_FOLDER if former.exists(TRIALS) else FOLDER}/{self.fingerprint}"

    @cached_property
    def storage(self) -> Storage:
        """The folder of the tuning."""
        return self.graph.workspace.folder(self.folder)

    @property
    def resources(self) -> TrainResources:
        """Machines for one trial."""
        resources: TrainResources = getattr(self.recipe.resources, self.config.stage)
        return resources

    @cached_property
    def probes(self) -> Mapping[str, list[Recipe]]:
        """By field, recipes that differ in it alone: both ends of a range, all values of a list.

        Raises:
            ValueError: the recipe refuses a value.
        """
        return {name: [self.recipe_of(setting) for setting in self.space.probes(name)] for name in self.space.fields}

    @cached_property
    def reports(self) -> int:
        """Validations of the longest trial."""
        recipes = [self.recipe, *(recipe for probed in self.probes.values() for recipe in probed)]
        return max(map(self.epochs, recipes)) * self.config.scheduler.reports_per_epoch

    def epochs(self, recipe: Recipe) -> int:
        """Epochs of the tuned stage."""
        return int(getattr(recipe, self.config.stage).epochs)

    def recipe_of(self, values: Setting, seed: int | None = None) -> Recipe:
        """The recipe with other values.

        Raises:
            ValueError: the recipe refuses them.
        """
        recipe = changed_recipe(self.recipe, values, self.make_recipe, "tune.space")
        return recipe if seed is None else replace(recipe, seed=seed)

    def recipe_of_trial(self, values: Setting, *, phase: Phase, seed: int) -> Recipe:
        """The recipe of a training in one of the phases, which use different halves of the validation videos.

        Finalists ranked on the videos they were chosen on would look too good compared with baselines, which are not
        chosen.
        """
        return self.recipe_of({**values, **half_of(self.config.stage, phase)}, seed)

    def record(self, name: str, values: Setting, *, phase: Phase, label: str, seed: int) -> TrialRecord:
        """The record of a trial that has not begun."""
        graph = make_graph(self.recipe_of_trial(values, phase=phase, seed=seed))
        return TrialRecord(
            name=name,
            phase=phase,
            label=label,
            values=values,
            seed=seed,
            fingerprint=graph.fingerprints[self.config.stage],
            folders=tuple(graph.folders(graph.with_inputs(self.config.stage))),
        )

    @cached_property
    def readers(self) -> Mapping[str, frozenset[str]]:
        """By field, the stages up to the tuned one whose result changes with it."""
        found = {}
        for name, recipes in self.probes.items():
            graphs = list(map(make_graph, recipes))
            stages = {stage.name for graph in graphs for stage in graph.with_inputs(self.config.stage)}
            # A stage that only some of the graphs have changes with the field, too.
            found[name] = frozenset(
                stage for stage in stages if len({graph.fingerprints.get(stage) for graph in graphs}) > 1
            )
        return found

    @cached_property
    def shared(self) -> list[Stage]:
        """Stages before the tuned one that all trials share, in order."""
        apart = frozenset().union(*self.readers.values())
        return [stage for stage in self.graph.with_inputs(self.config.stage)[:-1] if stage.name not in apart]

    @cached_property
    def shares_inputs(self) -> bool:
        """Whether all trials, but for the final ranking, have the same stages before the tuned one."""
        return len(self.shared) == len(self.graph.with_inputs(self.config.stage)) - 1

    def inputs_are_done(self, records: Iterable[TrialRecord]) -> bool:
        """Whether every stage before the tuned one is done for each of ``records``."""
        graphs = [
            make_graph(self.recipe_of_trial(known.values, phase=known.phase, seed=known.seed)) for known in records
        ]
        return all(
            graph.artifact(stage.name) is not None
            for graph in graphs
            for stage in graph.with_inputs(self.config.stage)[:-1]
        )


def slug(label: str) -> str:
    """``label`` as a part of names."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def half_of(stage: str, phase: Phase) -> Setting:
    """The setting that says with which half of the validation videos a training is validated.

    None for the estimator, which is validated on labels and not on videos.
    """
    return {f"{stage}.validation_half": _HALVES[phase]} if stage in ("retrieval", "video_qa") else {}


def changed_recipe(recipe: Recipe, values: Setting, make_recipe: MakeRecipe, place: str) -> Recipe:
    """``recipe`` with other values, which the tune file has in ``place``.

    Raises:
        ValueError: the recipe refuses them.
    """
    try:
        return make_recipe(with_values(plain(recipe), values))
    except ValueError as error:
        raise ValueError(f"{place}: {describe(values)} is refused: {error}") from error


def asked_for(tuning: Tuning) -> str:
    """A digest of the extent of the tuning: the summary of a shorter one is not enough."""
    config = tuning.config
    return digest([config.trials, config.finalists, config.seeds, config.baselines, config.map])


def is_done(tuning: Tuning) -> bool:
    """Whether there is a summary of everything that the configuration asks for."""
    return tuning.storage.exists(SUMMARY) and tuning.storage.read_json(SUMMARY)["asked_for"] == asked_for(tuning)


def plan_of(tuning: Tuning) -> str:
    """The space, the stages that all trials share with their states, and the trials so far."""
    config, values = tuning.config, flatten(plain(tuning.recipe), tuning.space.fields)
    space = table(
        ["field", "drawn from", "when", "the recipe has", "run once per value"],
        [
            [
                parameter.field,
                str(parameter.domain),
                "; ".join(f"{name} is {' or '.join(map(str, values))}" for name, values in parameter.when.items()),
                str(values.get(parameter.field)),
                ", ".join(stage.name for stage in tuning.graph.stages if stage.name in tuning.readers[parameter.field]),
            ]
            for parameter in tuning.space.parameters
        ],
    )
    shared = {stage.name for stage in tuning.shared}
    steps = [step for step in tuning.graph.plan(until_stage=config.stage) if step.stage.name in shared]
    journal = Journal(tuning.storage)
    best = "largest" if config.direction == "max" else "smallest"
    trained = (config.finalists + len(config.baselines)) * config.seeds
    return "\n\n".join(
        [
            f"Tuning {tuning.fingerprint} in {tuning.storage.uri}: the {best} {config.metric} of {config.stage}, "
            f"sampler {config.sampler.name}, scheduler {config.scheduler.name}",
            space,
            f"Stages that all trials share\n\n{plan_table(steps)}",
            f"Trials:        {config.trials}{_states(journal, 'trial')}\n"
            f"Final ranking: {trained} trainings: {config.finalists} finalists and {len(config.baselines)} baselines, "
            f"{config.seeds} seeds each{_states(journal, 'final')}",
        ]
    )


def _states(journal: Journal, phase: Phase) -> str:
    counts: Counter[str] = Counter(record.state for record in journal.of(phase))
    names = {"finished": "finished", "stopped": "ended early", "failed": "failed", "running": "to be continued"}
    known = [f"{counts[state]} {name}" for state, name in names.items() if counts[state]]
    return f", of which {', '.join(known)}" if known else ""
