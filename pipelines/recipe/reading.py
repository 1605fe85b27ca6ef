"""Settings from their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


def config_from_plain(kind: type, document: Mapping[str, Any], *, place: str) -> Any:
    """The frozen dataclass ``kind`` from its JSON form, which was read in ``place``.

    Raises:
        ValueError: a setting is unknown, missing or out of range.
    """
    try:
        return _config(kind, document)
    except ValueError as error:
        raise ValueError(f"{place} cannot be used: {error}") from error


def _config(kind: type, document: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    types = get_type_hints(kind)
    values = {}
    for name, value in document.items():
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            value = _config(types[name], value)  # type: ignore[arg-type]
        values[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[name], types[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value!r:.40}; {types[name]} is needed")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} is incomplete: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` has the type of a setting; a whole number is also a real one, a bool neither."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return value in choices
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(choices) and all(map(_fits, value, choices))
    if choices:
        return any(_fits(value, choice) for choice in choices)
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, hint)
