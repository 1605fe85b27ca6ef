"""A search: what its trials would train, which stages they share, and who it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TrainResources
from pipelines.stages.stage import Graph, Stage
from pipelines.tune.configs import SearchConfig
from pipelines.tune.journal import Phase, TrialRecord
from pipelines.tune.space import Setting, Space, describe, with_values
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.storage import Storage

MakeRecipe = Callable[[Mapping[str, Any]], Recipe]
"""The recipe that a document describes, checked as on the command line; raises ``ValueError``."""

FOLDER = "search"
"""Of the workspace; a folder per search."""


@dataclass(frozen=True)
class Search:
    """A search over settings of ``recipe``; :func:`pipelines.tune.checks.make_search` makes one that makes sense."""

    recipe: Recipe
    """With the changes that the search file makes for all trials."""
    config: SearchConfig
    space: Space
    make_recipe: MakeRecipe

    @cached_property
    def graph(self) -> Graph:
        """The stages of the recipe itself."""
        return make_graph(self.recipe)

    @cached_property
    def fingerprint(self) -> str:
        """Tells this search from others.

        How many trials, finalists, seeds and baselines there are has no part in it: a later run with
        more of them goes on with the same search.
        """
        config = self.config
        return digest(
            {
                "stage": self.graph.fingerprints[config.stage],
                "space": {parameter.field: plain(parameter) for parameter in self.space.parameters},
                **{name: plain(getattr(config, name)) for name in ("metric", "direction", "sampler", "scheduler")},
            }
        )

    @cached_property
    def storage(self) -> Storage:
        """The folder of the search."""
        return self.graph.workspace.folder(FOLDER, self.fingerprint)

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
        """Epochs of the searched stage."""
        return int(getattr(recipe, self.config.stage).epochs)

    def recipe_of(self, values: Setting, seed: int | None = None) -> Recipe:
        """The recipe with other values.

        Raises:
            ValueError: the recipe refuses them.
        """
        try:
            recipe = self.make_recipe(with_values(plain(self.recipe), values))
        except ValueError as error:
            raise ValueError(f"search.space: {describe(values)} is refused: {error}") from error
        return recipe if seed is None else replace(recipe, seed=seed)

    def record(self, name: str, values: Setting, *, phase: Phase, label: str, seed: int) -> TrialRecord:
        """The record of a trial that has not begun."""
        graph = make_graph(self.recipe_of(values, seed))
        return TrialRecord(
            name=name,
            phase=phase,
            label=label,
            values=values,
            seed=seed,
            fingerprint=graph.fingerprints[self.config.stage],
            folders=tuple(graph.folders(with_inputs(graph, self.config.stage))),
        )

    @cached_property
    def readers(self) -> Mapping[str, frozenset[str]]:
        """By field, the stages up to the searched one whose result changes with it."""
        found = {}
        for name, recipes in self.probes.items():
            graphs = list(map(make_graph, recipes))
            stages = {stage.name for graph in graphs for stage in with_inputs(graph, self.config.stage)}
            found[name] = frozenset(
                stage for stage in stages if len({graph.fingerprints.get(stage) for graph in graphs}) > 1
            )
        return found

    @cached_property
    def shared(self) -> list[Stage]:
        """Stages before the searched one that all trials of the search share, in order."""
        apart = frozenset().union(*self.readers.values())
        return [stage for stage in with_inputs(self.graph, self.config.stage)[:-1] if stage.name not in apart]


def with_inputs(graph: Graph, name: str) -> list[Stage]:
    """The stage ``name``, last, after all the stages that it needs, in order."""
    stages = {stage.name: stage for stage in graph.stages}
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        needed.add(stage := waiting.pop())
        waiting += stages[stage].inputs
    return [stage for stage in graph.stages if stage.name in needed]


def slug(label: str) -> str:
    """``label`` as a part of names."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
