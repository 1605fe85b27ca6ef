"""A tuning of a recipe's settings: who it is, what it refuses, what its trials have done so far, what is left.

The journal, and nothing that Ray Tune or Optuna write, is what a tuning goes on from: Tune's own
snapshots come every ten seconds, are not atomic, and hold no scheduler; Optuna's storages need a local
file, a SQL server or Redis, and a workspace may lie in a bucket. Sampler and scheduler are filled anew
from the records, so that a driver may be killed at any point. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from hbi_models.configs import require
from pipelines.datasets.requirements import require_validation
from pipelines.graph import make_graph
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.resources import TrainResources
from pipelines.stages.data_check import KnownData, pending
from pipelines.stages.stage import Graph, Stage
from pipelines.tables import plan_table, table
from pipelines.tune.space import (
    Setting,
    Space,
    TuningConfig,
    check_fields,
    describe,
    field_names,
    flatten,
    parse_space,
    with_values,
)
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.storage import Storage

MakeRecipe = Callable[[Mapping[str, Any]], Recipe]
"""The recipe that a document describes, checked as on the command line; raises ``ValueError``."""

FOLDER = "tune"
"""Of the workspace; a folder per tuning."""
FORMER_FOLDER = "search"
"""What earlier versions called it; a tuning that began there stays there."""

SUMMARY = "summary.json"
"""Written last: a tuning that has one is done, as far as it was asked for."""
RANKING = "ranking.txt"
BEST_RECIPE = "best_recipe.yaml"
TRIALS = "trials.jsonl"
POPULATION = "population"
"""Folder that holds a folder per trial of population-based training."""

_OUTSIDE = ("workspace", "seed", "evaluation", "resources", "tracking")
"""Sections in which nothing is tuned: seeds have their own setting, the others change no trained model."""

_LIVE = ("loss", "augmentation")
"""Sections whose values a training reads anew in every step, so that they may change on the way."""


@dataclass(frozen=True)
class Tuning:
    """A search over settings of ``recipe``; :func:`make_tuning` makes one that makes sense."""

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
        """Tells this tuning from others.

        How many trials, finalists, seeds and baselines there are has no part in it: a later run with
        more of them goes on with the same tuning.
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
        try:
            recipe = self.make_recipe(with_values(plain(self.recipe), values))
        except ValueError as error:
            raise ValueError(f"tune.space: {describe(values)} is refused: {error}") from error
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
        """By field, the stages up to the tuned one whose result changes with it."""
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
        """Stages before the tuned one that all trials share, in order."""
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


Phase = Literal["trial", "final"]
"""``trial``: one training per setting. ``final``: finalists and baselines, several seeds each."""

TrialState = Literal["running", "finished", "stopped", "failed"]
"""``stopped``: ended early by the scheduler. ``failed``: it raised, or its process died too often."""

HOPELESS = (ArithmeticError, ValueError, FileNotFoundError)
"""What would happen again: a trial that raises it has failed. After anything else Tune tries it again."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One validation of a trial."""

    progress: int
    """Validations since the start of the training, this one included: the scheduler's clock."""
    epoch: float
    step: int
    value: float
    """The metric that is tuned for."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One training with one setting and one seed."""

    name: str
    phase: Phase
    label: str
    """Which setting: ``trial-003``, or the name of a baseline. Trainings with several seeds share it."""
    values: Mapping[str, Any]
    """Values of the fields that differ from the recipe; those at the end where the scheduler changed them."""
    seed: int
    fingerprint: str
    """Of the trained stage; its artifact is the trial's result."""
    folders: tuple[str, ...] = ()
    """Folders of the workspace that it needs: those of its stages."""
    state: TrialState = "running"
    reports: tuple[Report, ...] = ()
    value: float | None = None
    """The metric at the chosen checkpoint of a finished trial, else the last one reported."""
    reason: str = ""
    """Why it ended."""
    seconds: float = 0.0
    """From its start to its end, in the run of the command in which it ended."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state != "running"

    def reported(self, report: Report) -> TrialRecord:
        """The record with one more report; one that is made again after a restart replaces the old one."""
        kept = tuple(other for other in self.reports if other.progress < report.progress)
        return replace(self, reports=(*kept, report), value=report.value)

    def value_at(self, progress: int) -> float | None:
        """The last value reported up to ``progress``."""
        return next((report.value for report in reversed(self.reports) if report.progress <= progress), None)


class Journal:
    """The records of a tuning, in the order in which the trials were first started."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: dict[str, TrialRecord] = {}
        if storage.exists(TRIALS):
            for line in storage.read_bytes(TRIALS).decode().splitlines():
                document = json.loads(line)
                reports = tuple(Report(**report) for report in document.pop("reports"))
                if document["phase"] == FORMER_FOLDER:
                    document["phase"] = "trial"
                record = TrialRecord(**document | {"reports": reports, "folders": tuple(document["folders"])})
                self._records[record.name] = record

    def __getitem__(self, name: str) -> TrialRecord:
        return self._records[name]

    def get(self, name: str) -> TrialRecord | None:
        """The record of a trial that was started."""
        return self._records.get(name)

    @property
    def folders(self) -> set[str]:
        """Folders of the workspace that the trials need."""
        return {folder for record in self._records.values() for folder in record.folders}

    def of(self, phase: Phase) -> list[TrialRecord]:
        """All records of a phase."""
        return [record for record in self._records.values() if record.phase == phase]

    def put(self, record: TrialRecord) -> TrialRecord:
        """Commits a record."""
        self._records[record.name] = record
        lines = (json.dumps(plain(record)) for record in self._records.values())
        self._storage.write_bytes(TRIALS, "".join(f"{line}\n" for line in lines).encode())
        return record


def make_tuning(recipe: Recipe, config: TuningConfig, make_recipe: MakeRecipe) -> Tuning:
    """The tuning that ``config`` describes over settings of ``recipe``.

    Raises:
        FileNotFoundError: annotations or videos are not there.
        ValueError: a field is unknown or changes nothing, a range is impossible, the recipe refuses a
            value, the stage does not report the metric, or the scheduler cannot work on such fields.
    """
    known = list(field_names(Recipe))
    space = parse_space(config.space)
    changes = flatten(config.recipe, known)
    check_fields(space.fields, known, "tune.space")
    check_fields(list(changes), known, "tune.recipe")
    for name, values in config.baselines.items():
        check_fields(list(values), known, f"tune.baselines.{name}")
    for name in config.map or ():
        require(name in space.fields, f"tune.map names {name}, which is not tuned")
    names = [slug(name) for name in config.baselines]
    require(
        len({*names} - {""}) == len(names),
        f"tune.baselines are named {', '.join(config.baselines)}; their names must differ in letters or digits",
    )
    changed = _made(recipe, changes, make_recipe, "tune.recipe")
    # Trials may run in another folder than the command.
    changed = replace(changed, workspace=Storage(changed.workspace).uri)
    for name, values in config.baselines.items():
        _made(changed, values, make_recipe, f"tune.baselines.{name}")
    tuning = Tuning(changed, config, space, make_recipe)
    _check_stage(tuning)
    _check_fields(tuning)
    _check_sampler(tuning)
    if config.scheduler.name == "asha":
        _check_halving(tuning)
    elif config.scheduler.name == "pbt":
        _check_population(tuning)
    return tuning


def _made(recipe: Recipe, values: Setting, make_recipe: MakeRecipe, place: str) -> Recipe:
    try:
        return make_recipe(with_values(plain(recipe), values))
    except ValueError as error:
        raise ValueError(f"{place}: {describe(values)} is refused: {error}") from error


def _check_stage(tuning: Tuning) -> None:
    trained = {stage.name: stage.metrics for stage in tuning.graph.stages if stage.metrics}
    name, metric = tuning.config.stage, tuning.config.metric
    require(
        name in trained,
        f"tune.stage is {name!r}; the training stages of this recipe are: {', '.join(trained) or 'none'}",
    )
    require(
        metric in trained[name],
        f"tune.metric is {metric!r}, which the stage {name} never reports; it reports: {', '.join(trained[name])}",
    )


def _check_fields(tuning: Tuning) -> None:
    for name in tuning.space.fields:
        section = name.split(".")[0]
        remedy = "tune.seeds says how many seeds a setting gets" if name == "seed" else "it changes no trained model"
        require(section not in _OUTSIDE, f"tune.space names {name}; nothing under {section} is tuned: {remedy}")
    for name, stages in tuning.readers.items():
        require(
            bool(stages),
            f"tune.space names {name}, and the stage {tuning.config.stage} is the same for every value of it that "
            f"was tried ({tuning.space[name].domain}); leave it out",
        )


def _check_sampler(tuning: Tuning) -> None:
    sampler = tuning.config.sampler.name
    if sampler == "grid":
        tuning.space.combinations()
        return
    for parameter in tuning.space.parameters:
        require(
            not getattr(parameter.domain, "every", False),
            f"tune.space.{parameter.field} is a grid, and the sampler {sampler} draws; write choice instead of grid, "
            "or choose the sampler grid",
        )


def _check_halving(tuning: Tuning) -> None:
    grace, per_epoch = tuning.config.scheduler.grace_epochs, tuning.config.scheduler.reports_per_epoch
    require(
        grace * per_epoch < tuning.reports,
        f"tune.scheduler.grace_epochs is {grace:g} and a trial has {tuning.reports / per_epoch:g} epochs: none "
        "would be ended early; lower it, or choose the scheduler none",
    )


def _check_population(tuning: Tuning) -> None:
    config = tuning.config
    for parameter in tuning.space.parameters:
        require(
            not set(_LIVE).isdisjoint(parameter.field.split(".")) and not parameter.when,
            f"tune.scheduler is pbt, which changes settings on the way, and {parameter.field} is fixed when a "
            f"training starts, or hangs on another field; tune fields of {' and '.join(_LIVE)} sections without "
            "conditions, or choose asha or none",
        )
    require(
        config.trials >= 2 and config.sampler.name == "random" and tuning.resources.workers <= 1,
        "tune.scheduler is pbt: its trials start from drawn settings and exchange checkpoints between single "
        "processes; set tune.trials to 2 or more, tune.sampler.name to random, and "
        f"resources.{config.stage}.workers to 1",
    )


def require_tuning_data(tuning: Tuning, known: KnownData) -> None:
    """Refuses data with which no trial, or one of the baselines, could be trained, or with which none can be judged.

    A single trial whose settings the data cannot serve fails by itself, before anything is done for it.

    Raises:
        ValueError: the message says what is missing.
    """
    name = tuning.config.stage
    if known.manifest is None or "manifest" not in {stage.name for stage in tuning.shared}:
        return
    stages = {*pending(tuning.graph.plan(until_stage=name)), name}
    refused = []
    probed = [recipe for recipes in tuning.probes.values() for recipe in recipes]
    for recipe in probed:
        try:
            known.require(recipe, stages)
        except ValueError as error:
            refused.append(error)
    if len(refused) == len(probed):
        raise refused[0]
    for label, values in tuning.config.baselines.items():
        try:
            known.require(tuning.recipe_of(values), stages)
        except ValueError as error:
            raise ValueError(f"tune.baselines.{label}: {error}") from error
    require_validation(name, known.manifest)


def asked_for(tuning: Tuning) -> str:
    """A digest of how far the tuning is to go: the summary of a shorter one says nothing about it."""
    config = tuning.config
    return digest([config.trials, config.finalists, config.seeds, config.baselines, config.map])


def is_done(tuning: Tuning) -> bool:
    """Whether there is a summary of all that is asked for."""
    return tuning.storage.exists(SUMMARY) and tuning.storage.read_json(SUMMARY)["asked_for"] == asked_for(tuning)


def plan_of(tuning: Tuning) -> str:
    """The space, the stages that all trials share with their states, and the trials that there are."""
    config, document = tuning.config, plain(tuning.recipe)
    space = table(
        ["field", "drawn from", "when", "the recipe has", "run once per value"],
        [
            [
                parameter.field,
                str(parameter.domain),
                "; ".join(f"{name} is {' or '.join(map(str, values))}" for name, values in parameter.when.items()),
                str(_value(document, parameter.field)),
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
            f"Search {tuning.fingerprint} in {tuning.storage.uri}: the {best} {config.metric} of {config.stage}, "
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
    names = {"finished": "finished", "stopped": "ended early", "failed": "failed", "running": "to go on with"}
    known = [f"{counts[state]} {name}" for state, name in names.items() if counts[state]]
    return f", of which {', '.join(known)}" if known else ""


def _value(document: Any, field: str) -> Any:
    for part in field.split("."):
        document = (document or {}).get(part)
    return document
