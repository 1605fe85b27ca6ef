"""Reading a pickle from an unknown source as plain data.

A pickle is a program that can import and call anything that it names. Here it can only build dictionaries, lists,
tuples, texts and numbers, for which a pickle names nothing.
"""

from __future__ import annotations

import io
import pickle
from typing import Any


class _PlainUnpickler(pickle._Unpickler):
    """Refuses every name, and with it every class and function.

    It derives from the unpickler written in Python. The one in C allocates memory for whatever memo index a damaged
    file names: ten bytes can make it allocate gigabytes.
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
    # A damaged pickle is a program with wrong instructions, so it may raise any error.
    except Exception as error:
        raise ValueError(f"not a pickle of plain data: {error or type(error).__name__}") from error
