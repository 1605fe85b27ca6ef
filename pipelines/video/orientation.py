"""Frames the right way up: the display matrix of a file says how its pictures are turned and mirrored.

MP4 and MOV keep it in the track's header, Matroska in the projection, H.264 and HEVC in messages between the
pictures; FFmpeg hands all of them on with the decoded frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

Matrix = tuple[int, int, int, int]
"""``(a, b, c, d)``: a pixel at column p and row q is shown at column a·p + c·q and row b·p + d·q, but for an offset
(ISO/IEC 14496-12, 8.3.2.3)."""

UPRIGHT: Matrix = (1, 0, 0, 1)


def display_matrix(frame: Any) -> Matrix:
    """The matrix of a decoded frame, in steps of a quarter turn; odd angles go to the nearest one."""
    data = frame.side_data.get("DISPLAYMATRIX")
    # FFmpeg gives nine numbers of 32 bits in the order of the machine.
    return UPRIGHT if data is None else quarter_turns(np.frombuffer(bytes(data), "=i4").tolist())


def quarter_turns(matrix: Sequence[int]) -> Matrix:
    """The nearest turn by quarters, mirrored or not, to a 3×3 matrix in FFmpeg's order (row by row)."""
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        # A matrix of zeros says nothing.
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def upright(
    image: UInt8[np.ndarray, "height width 3"], matrix: Matrix
) -> UInt8[np.ndarray, "shown_height shown_width 3"]:
    """The picture as it should be shown."""
    a, b, c, d = matrix
    if b or c:
        # Now what was a row is a column, and goes by the sign of c; what was a column goes by that of b.
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
