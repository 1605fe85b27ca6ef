"""What every video decoder gives: the frames that a file shows at wanted times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from pipelines.video.timeline import Note, Timeline

DecoderName = Literal["decord", "pyav", "torchcodec", "nvdec"]
DecoderChoice = Literal["auto", "decord", "pyav", "torchcodec", "nvdec"]


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame, upright; ``time_s`` is when it is shown, after the first frame of the file."""

    index: int
    time_s: float
    image: UInt8[np.ndarray, "height width 3"]


class Decoder(Protocol):
    """An open video."""

    name: DecoderName
    timeline: Timeline
    notes: list[Note]
    """Remarks about the decoding so far."""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields what is shown at the times of the frames at ``indices``, which increase strictly.

        Where a packet holds no picture, that is the frame before; none is yielded twice. No more is decoded than
        needed.

        Raises:
            FrameCountError: the stream has fewer frames than its timeline.
            UnreadableVideoError: the stream is damaged.
            WrongTimesError: what comes is shown at other times than the timeline says.
        """
        ...

    def close(self) -> None:
        """Frees the file and the decoder's buffers."""
        ...
