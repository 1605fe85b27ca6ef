"""What a tuning refuses: a tune file and a recipe that do not fit each other, and data that it cannot use.

Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import replace

from hbi_models.config_fields import require
from pipelines.datasets.requirements import require_validation
from pipelines.recipe.fields import check_fields, field_names, flatten
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.tuning import TuningConfig
from pipelines.stages.data_check import KnownData, pending
from pipelines.tune.space import parse_space
from pipelines.tune.tuning import MakeRecipe, Tuning, changed_recipe, slug
from pipelines.workspace.storage import Storage

_OUTSIDE = ("workspace", "seed", "evaluation", "probe", "resources", "tracking")
"""Sections that cannot be tuned: seeds have their own setting, the others do not change the trained model."""

_LIVE = ("loss", "augmentation")
"""Sections whose values a training reads in every step, so that they may change during a training."""


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
    changed = changed_recipe(recipe, changes, make_recipe, "tune.recipe")
    # An absolute path, because trials may run in another folder than the command.
    changed = replace(changed, workspace=Storage(changed.workspace).uri)
    for name, values in config.baselines.items():
        changed_recipe(changed, values, make_recipe, f"tune.baselines.{name}")
    tuning = Tuning(changed, config, space, make_recipe)
    _check_stage(tuning)
    _check_fields(tuning)
    _check_sampler(tuning)
    if config.scheduler.name == "asha":
        _check_halving(tuning)
    elif config.scheduler.name == "pbt":
        _check_population(tuning)
    return tuning


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
            f"training starts, or depends on another field; tune fields of {' and '.join(_LIVE)} sections without "
            "conditions, or choose asha or none",
        )
    require(
        config.trials >= 2 and config.sampler.name == "random" and tuning.resources.workers <= 1,
        "tune.scheduler is pbt: its trials start from drawn settings and exchange checkpoints between single "
        "processes; set tune.trials to 2 or more, tune.sampler.name to random, and "
        f"resources.{config.stage}.workers to 1",
    )


def require_tuning_data(tuning: Tuning, known: KnownData) -> None:
    """Refuses data with which no trial or one of the baselines could be trained, or with which trials could not be
    compared.

    If the data do not suit the settings of a single trial, only this trial fails, before any work is done for it.

    Raises:
        ValueError: the message says what is missing.
    """
    name = tuning.config.stage
    # Where a tuned field changes the manifest, InputStages.ready checks the data of each trial.
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
