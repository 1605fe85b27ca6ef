"""Recipes with options: by the parser of the command line, which is made once, and without it, which is faster."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from jobs.settings import read_recipe, recipe_from_document, recipe_parser
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.artifact import plain


def recipe_with(document: Mapping[str, Any], *options: str) -> Recipe:
    """The recipe of ``document`` with ``--section.field value`` pairs, as on a command line."""
    changed = _merged(plain(Recipe()), document)
    for option, text in zip(options[::2], options[1::2], strict=True):
        *sections, field = option.removeprefix("--").split(".")
        place = changed
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
        place[field] = _value(text)
    return recipe_from_document(changed)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a part of a section leaves out is as the recipe has it by default, not as the section alone would."""
    return {**defaults} | {
        name: _merged(defaults[name], value)
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
        else copy.deepcopy(value)
        for name, value in given.items()
    }


def parsed_recipe(*arguments: str) -> Recipe:
    """The recipe that a command line describes, by the parser of the commands."""
    return read_recipe(_parser(), arguments)[0]


@cache
def _parser() -> ArgumentParser:
    return recipe_parser("A test.")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text) if text[:1] in ("[", "{") else text
