"""Settings from their JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_SHOWN = 3
"""Mistakes that a message names."""


def config_from_plain(kind: type, document: Any, *, place: str | None = None) -> Any:
    """The frozen dataclass ``kind`` from its JSON form, which was read in ``place``; messages name that.

    Texts are not converted to numbers, nor numbers to texts. A whole number is accepted where a real one is needed.

    Raises:
        ValueError: a setting is unknown, missing, of another type or out of range.
    """
    from pydantic import ValidationError

    try:
        # As JSON: of Python objects, a strict validation takes no list for a tuple and no mapping for a dataclass.
        config = _reader(kind).validate_json(json.dumps(document), strict=True)
        # Pydantic ignores what a standard dataclass has no field for.
        problems = list(_unknown(document, config))
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
    except (TypeError, ValueError, RecursionError) as error:
        problems = [f"the settings are not a JSON document: {error}"]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{'' if place is None else f'{place} cannot be used: '}{'; '.join(problems[:_SHOWN])}{more}")
    return config


@cache
def _reader(kind: type) -> TypeAdapter[Any]:
    # Imported here because it is slow to import, and the command line's help does not need it.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _problem(detail: ErrorDetails) -> str:
    """What is wrong with one setting, in words."""
    name, given, kind = ".".join(map(str, detail["loc"])), detail["input"], detail["type"]
    if kind == "value_error":  # of our own checks, which name the setting themselves
        return str(detail["ctx"]["error"])
    if kind == "missing":
        return f"{name} is missing"
    if kind == "dataclass_type":
        return f"{name or 'the document'} is {given!r:.40}; a section with settings is needed"
    if given is None:
        return f"{name} is null; give it a value, or leave it out"
    return f"{name} is {given!r:.40}; it {detail['msg'].removeprefix('Input ')}"


def _unknown(document: Mapping[str, Any], config: Any, path: str = "") -> Iterator[str]:
    """What ``document`` says for which ``config``, which was made from it, has no setting."""
    known = type(config).__dataclass_fields__
    for name, value in document.items():
        if name not in known:
            yield f"{path or type(config).__name__} has no setting {name}; it has {', '.join(sorted(known))}"
        elif is_dataclass(getattr(config, name)):
            yield from _unknown(value, getattr(config, name), f"{path}.{name}" if path else name)
