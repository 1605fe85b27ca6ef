"""Damaging bytes at random, and what counts as a clear error about them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipelines.workspace.errors import DamagedFileError

FACTOR = int(os.environ.get("HBI_FUZZ_FACTOR", "1"))
"""How many times as many inputs are tried; `make test-faults` sets it."""

OPERATIONS = ("flip", "replace", "insert", "delete", "repeat", "cut")


def fuzz(examples: int) -> settings:
    """The same inputs in every run, ``examples`` of them times ``FACTOR``."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with up to six pieces of it changed."""
    place = st.integers(0, len(content))
    change = st.tuples(st.sampled_from(OPERATIONS), place, st.integers(1, 40), st.binary(min_size=1, max_size=8))
    return st.lists(change, min_size=1, max_size=6).map(lambda changes: _apply(content, changes))


def _apply(content: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for operation, place, length, new in changes:
        head, tail = content[:place], content[place:]
        if operation == "flip":
            tail = bytes([tail[0] ^ 1 << length % 8]) + tail[1:] if tail else b""
        elif operation == "replace":
            tail = new + tail[len(new) :]
        elif operation == "insert":
            tail = new + tail
        elif operation == "delete":
            tail = tail[length:]
        elif operation == "repeat":
            tail = tail[:length] + tail
        else:
            tail = b""
        content = head + tail
    return content


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON, also what only Python's reader takes."""
    leaf = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(min_value=10**18, max_value=10**25)
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(["", " ", "\0", "../x", "nan", "-1", "1e400", "train", "\ud800"])
    )
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )


def damaged_json(document: Any) -> st.SearchStrategy[bytes]:
    """The text of ``document`` with bytes changed, or one of its parts replaced by any JSON."""
    paths = _paths(document)

    def with_part(change: tuple[tuple[Any, ...], Any]) -> bytes:
        path, value = change
        copy = json.loads(json.dumps(document))
        if not path:
            return json.dumps(value).encode()
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        return json.dumps(copy).encode()

    replaced = st.tuples(st.sampled_from(paths), json_values()).map(with_part)
    return replaced | damaged(json.dumps(document).encode())


def _paths(document: Any) -> list[tuple[Any, ...]]:
    """Ways to every part of a document."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        parts = list(document.items())
    elif isinstance(document, list):
        parts = list(enumerate(document))
    return [(), *((key, *rest) for key, part in parts for rest in _paths(part))]


CLEAR = (ValueError, DamagedFileError, FileNotFoundError)


def refuses_clearly(read: Callable[[], Any], *names: str, allowed: tuple[type[Exception], ...] = CLEAR) -> bool:
    """Whether ``read`` refused, with an error of this project that holds one of ``names``; any other is raised."""
    try:
        read()
    except Exception as error:
        # Exact types: those of libraries derive from these, too, and say little.
        if type(error) in allowed and any(name in str(error) for name in names):
            return True
        raise
    return False
