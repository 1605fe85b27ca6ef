"""What is refused before a search starts anything."""

from __future__ import annotations

from dataclasses import replace

from hbi_models.configs import require
from pipelines.recipe.recipe import Recipe
from pipelines.tune.configs import SearchConfig
from pipelines.tune.search import MakeRecipe, Search, slug
from pipelines.tune.space import Setting, check_fields, describe, field_names, flatten, parse_space, with_values
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

_OUTSIDE = ("workspace", "seed", "evaluation", "resources", "tracking")
"""Sections in which nothing is searched: seeds have their own setting, the others change no trained model."""

_LIVE = ("loss", "augmentation")
"""Sections whose values a training reads anew in every step, so that they may change on the way."""


def make_search(recipe: Recipe, config: SearchConfig, make_recipe: MakeRecipe) -> Search:
    """The search that ``config`` describes over settings of ``recipe``.

    Raises:
        FileNotFoundError: annotations or videos are not there.
        ValueError: a field is unknown or changes nothing, a range is impossible, the recipe refuses a
            value, the stage does not report the metric, or the scheduler cannot work on such fields.
    """
    known = list(field_names(Recipe))
    space = parse_space(config.space)
    changes = flatten(config.recipe, known)
    check_fields(space.fields, known, "search.space")
    check_fields(list(changes), known, "search.recipe")
    for name, values in config.baselines.items():
        check_fields(list(values), known, f"search.baselines.{name}")
    for name in config.map or ():
        require(name in space.fields, f"search.map names {name}, which is not searched")
    names = [slug(name) for name in config.baselines]
    require(
        len({*names} - {""}) == len(names),
        f"search.baselines are named {', '.join(config.baselines)}; their names must differ in letters or digits",
    )
    changed = _made(recipe, changes, make_recipe, "search.recipe")
    # Trials may run in another folder than the command.
    changed = replace(changed, workspace=Storage(changed.workspace).uri)
    for name, values in config.baselines.items():
        _made(changed, values, make_recipe, f"search.baselines.{name}")
    search = Search(changed, config, space, make_recipe)
    _check_stage(search)
    _check_fields(search)
    _check_sampler(search)
    if config.scheduler.name == "asha":
        _check_halving(search)
    elif config.scheduler.name == "pbt":
        _check_population(search)
    return search


def _made(recipe: Recipe, values: Setting, make_recipe: MakeRecipe, place: str) -> Recipe:
    try:
        return make_recipe(with_values(plain(recipe), values))
    except ValueError as error:
        raise ValueError(f"{place}: {describe(values)} is refused: {error}") from error


def _check_stage(search: Search) -> None:
    trained = {stage.name: stage.metrics for stage in search.graph.stages if stage.metrics}
    name, metric = search.config.stage, search.config.metric
    require(
        name in trained,
        f"search.stage is {name!r}; the training stages of this recipe are: {', '.join(trained) or 'none'}",
    )
    require(
        metric in trained[name],
        f"search.metric is {metric!r}, which the stage {name} never reports; it reports: {', '.join(trained[name])}",
    )


def _check_fields(search: Search) -> None:
    for name in search.space.fields:
        section = name.split(".")[0]
        remedy = "search.seeds says how many seeds a setting gets" if name == "seed" else "it changes no trained model"
        require(section not in _OUTSIDE, f"search.space names {name}; nothing under {section} is searched: {remedy}")
    for name, stages in search.readers.items():
        require(
            bool(stages),
            f"search.space names {name}, and the stage {search.config.stage} is the same for every value of it that "
            f"was tried ({search.space[name].domain}); leave it out",
        )


def _check_sampler(search: Search) -> None:
    sampler = search.config.sampler.name
    if sampler == "grid":
        search.space.combinations()
        return
    for parameter in search.space.parameters:
        require(
            not getattr(parameter.domain, "every", False),
            f"search.space.{parameter.field} is a grid, and the sampler {sampler} draws; write choice instead of grid, "
            "or choose the sampler grid",
        )


def _check_halving(search: Search) -> None:
    grace, per_epoch = search.config.scheduler.grace_epochs, search.config.scheduler.reports_per_epoch
    require(
        grace * per_epoch < search.reports,
        f"search.scheduler.grace_epochs is {grace:g} and a trial has {search.reports / per_epoch:g} epochs: none "
        "would be ended early; lower it, or choose the scheduler none",
    )


def _check_population(search: Search) -> None:
    config = search.config
    for parameter in search.space.parameters:
        require(
            not set(_LIVE).isdisjoint(parameter.field.split(".")) and not parameter.when,
            f"search.scheduler is pbt, which changes settings on the way, and {parameter.field} is fixed when a "
            f"training starts, or hangs on another field; search fields of {' and '.join(_LIVE)} sections without "
            "conditions, or choose asha or none",
        )
    require(
        config.trials >= 2 and config.sampler.name == "random" and search.resources.workers == 1,
        "search.scheduler is pbt: its trials start from drawn settings and exchange checkpoints between single "
        "processes; set search.trials to 2 or more, search.sampler.name to random, and "
        f"resources.{config.stage}.workers to 1",
    )
