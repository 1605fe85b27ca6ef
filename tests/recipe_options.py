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


def recipe_with(document: Mapping[str, Any], *options: str) -> Recipe:
    """The recipe of ``document`` with ``--section.field value`` pairs, as on a command line."""
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    for option, text in zip(options[::2], options[1::2], strict=True):
        *sections, field = option.removeprefix("--").split(".")
        place = changed
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = _value(text)
    return recipe_from_document(changed)


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
