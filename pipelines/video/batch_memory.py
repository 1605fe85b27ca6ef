"""Memory of batches that is used again.

The kernel clears the pages that it gives out, which takes as long as a fifth of decoding what is written there. So the
memory of a batch that nobody holds any more becomes that of a later one.
"""

from __future__ import annotations

import weakref

import numpy as np
from jaxtyping import UInt8


class BatchMemory:
    """Arrays of bytes, lent as long as a tensor holds them. Several threads may ask.

    It holds no more arrays than were lent at once, all of the shape that was asked for last. It arrives in another
    process without any.
    """

    def __init__(self) -> None:
        self._free: list[UInt8[np.ndarray, "..."]] = []

    def __reduce__(self) -> tuple[type[BatchMemory], tuple[()]]:
        return type(self), ()

    def take(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """An array with any content, for ``torch.from_numpy``: the tensor keeps it, NumPy's own views of it do not."""
        # No lock: a list gives and takes in one step. No look whether it is empty: another thread may come in between.
        try:
            while (array := self._free.pop()).shape != shape:
                pass
        except IndexError:
            # Allocated by NumPy, which asks the kernel for large pages: a quarter of the time that PyTorch needs.
            array = np.zeros(shape, np.uint8)
        # Only the view is lent. When the tensor that holds it is gone, so is the view, and the array itself comes back.
        lent = array.view()
        weakref.finalize(lent, self._free.append, array).atexit = False
        return lent
