"""Names of tensors in checkpoints: prefixes of training codes, and lists of names for messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")

WRAPPERS = ("module.", "model.")
"""What DistributedDataParallel and Lightning put in front of every name."""

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts in front of the names of each module that it compiled."""

_SHOWN = 5


def without_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """Returns the tensors under the names that the model itself gives them."""
    named = {name.replace(COMPILED, ""): value for name, value in state.items()}
    for prefix in _shared_prefixes(named):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _shared_prefixes(names: Collection[str]) -> list[str]:
    """The wrappers that all names begin with, the outermost first."""
    found: list[str] = []
    # What only some names begin with is a module of the model itself.
    while names and (wrapper := next((one for one in WRAPPERS if all(n.startswith(one) for n in names)), None)):
        found.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return found


def listed(names: Collection[str]) -> str:
    """Returns the number of names and the first few of them, for a message."""
    first, more = sorted(names)[:_SHOWN], len(names) - _SHOWN
    return f"{len(names)} ({', '.join(first)}{f' and {more} more' if more > 0 else ''})" if names else "0"
