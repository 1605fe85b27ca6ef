"""Recipes with options, read without the parser of the command line, which takes seconds for each.

The command line has its own tests (tests/jobs/test_settings.py, tests/repository/test_recipes.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from jobs.settings import recipe_from_document
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


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
