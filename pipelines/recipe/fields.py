"""The settings of a recipe as one level of dotted names, such as ``model.loss.kl``."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints


def flatten(document: Mapping[str, Any], known: Sequence[str], path: str = "") -> dict[str, Any]:
    """Sections and dotted names of a document as one level of field names; a mapping that is a field's value stays
    whole."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping) and name not in known:
            found |= flatten(value, known, f"{name}.")
        else:
            found[name] = value
    return found


def field_names(kind: type, path: str = "") -> Iterator[str]:
    """Names of all settings of a configuration class, including those of sections that may be null."""
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        # A section that may be null has the type Section | None.
        sections = [option for option in (types[item.name], *get_args(types[item.name])) if _is_section(option)]
        if sections:
            yield from field_names(sections[0], f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def check_fields(names: Sequence[str], known: Sequence[str], place: str) -> None:
    """Raises ``ValueError`` for a name that is not a field; the message suggests similar ones."""
    for name in names:
        if name in known:
            continue
        last = name.rsplit(".", 1)[-1]
        alike = difflib.get_close_matches(name, known, n=3) or [other for other in known if other.endswith(f".{last}")]
        hint = f"; did you mean {' or '.join(alike[:3])}?" if alike else ""
        raise ValueError(f"{place} names {name}, which is not a field of a recipe{hint} (--print_config shows all)")


def with_values(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's ``document`` in which some fields have other values."""
    changed = copy.deepcopy(dict(document))
    for name, value in values.items():
        section = changed
        *sections, leaf = name.split(".")
        for part in sections:
            # A section that is null, such as data.shapes, begins to exist with the first field that is set.
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
        section[leaf] = copy.deepcopy(value)
    return changed
