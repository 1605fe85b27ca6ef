"""What the declaration of a setting says beside its default: for which uses it counts, and what it names.

Imports nothing but the standard library, as all declarations of settings do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, Field, field
from typing import Any, Literal

Use = Literal["features", "training", "answering", "evaluation"]
"""What settings of a retrieval model are used for: ``features`` of single words and frames by a model as it is
initialised, which labels are made of; its ``training``; ``answering``: the training inside of a question
answering model, which has its own words, merges, losses and rates; ``evaluation`` of given weights."""

Content = Literal["checkpoint", "file or name"]
"""What a setting names: a ``checkpoint`` (a folder or a file), or a ``file or name``: a local file, or else a name
that says everything."""

_USES, _CONTENT, _ABSENT = "uses", "content", "absent_at_default"


def only_for(
    *uses: Use,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    names: Content | None = None,
) -> Any:
    """A field of settings that can change results only in ``uses``; without ``uses`` it changes no result.

    An ordinary field can change every result. ``names`` as in :func:`content_of`.
    """
    metadata = {_USES: uses} | ({} if names is None else {_CONTENT: names})
    return field(default=default, default_factory=default_factory, metadata=metadata)


def content_of(names: Content, *, default: Any = None) -> Any:
    """A field of settings that names a file or folder. Results depend on its contents, not on its place."""
    return field(default=default, metadata={_CONTENT: names})


def counts_for(item: Field[Any], uses: Collection[Use]) -> bool:
    """Whether the setting ``item`` can change a result of any of ``uses``."""
    # A field without a mark counts everywhere, one that is marked with no use nowhere.
    marked = item.metadata.get(_USES)
    return marked is None or any(use in uses for use in marked)


def content_named_by(item: Field[Any]) -> Content | None:
    """What the setting ``item`` names by path; None = nothing."""
    found: Content | None = item.metadata.get(_CONTENT)
    return found


def added_later(
    *uses: Use, default: Any = MISSING, default_factory: Any = MISSING, names: Content | None = None
) -> Any:
    """A field of settings that is left out of documents and fingerprints at its default.

    So artifacts from before the setting existed keep their fingerprints. ``uses`` as in :func:`only_for`, but without
    any it counts everywhere; ``names`` as in :func:`content_of`.
    """
    metadata = {_ABSENT: True} | ({_USES: uses} if uses else {}) | ({} if names is None else {_CONTENT: names})
    return field(default=default, default_factory=default_factory, metadata=metadata)


def is_absent(item: Field[Any], value: Any) -> bool:
    """Whether a setting of this value is left out of documents and fingerprints, as if there were no such setting."""
    if not item.metadata.get(_ABSENT):
        return False
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return bool(value == default)


def require(condition: bool, message: str) -> None:
    """Raises ``ValueError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)
