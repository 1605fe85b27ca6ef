"""Reading a pickle from outside as what it should be: plain data.

A pickle is a program: to load one is to let it import and call whatever it names. Here it may
build dictionaries, lists, tuples, texts and numbers, which takes no name at all.
"""

from __future__ import annotations

import io
import pickle
from typing import Any


class _PlainUnpickler(pickle._Unpickler):
    """Refuses every global, and with it every class and function.

    It derives from the unpickler in Python: the one in C reserves memory for whatever place in its
    memo a damaged file names, gigabytes at the word of ten bytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = f"{module}.{name}"
        raise pickle.UnpicklingError(f"it names {found[:80]!r}, which loading would import; plain data names nothing")


def load_plain_pickle(data: bytes) -> Any:
    """Returns the data in the pickle ``data``, of any protocol; texts of Python 2 stay bytes.

    Raises:
        ValueError: the pickle names a class or function, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    # A damaged pickle is a program with wrong instructions: there is no telling what they raise.
    except Exception as error:
        raise ValueError(f"not a pickle of plain data: {error or type(error).__name__}") from error
