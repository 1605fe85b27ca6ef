"""decord 0.6 (its last release), which counts frames, and returns wrong ones for some kinds of files.

See the table in docs/decoding.md. It reads only files that it is known to read correctly.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipelines.video.decoder import DecoderName, Frame
from pipelines.video.errors import UnreadableVideoError, WrongTimesError, first_line, reading
from pipelines.video.orientation import UPRIGHT, Matrix
from pipelines.video.timeline import Timeline

_CONTAINERS = frozenset({"mov", "matroska", "flv"})
_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "h263"})


def decord_doubt(timeline: Timeline, orientation: Matrix = UPRIGHT) -> str | None:
    """Why decord would return wrong frames of a file; None if it is correct."""
    a, b, c, d = orientation
    doubts = {
        f"the format is {timeline.container}": timeline.container not in _CONTAINERS,
        f"the codec is {timeline.codec}": timeline.codec not in _CODECS,
        "frames have no presentation times": timeline.pts is None,
        "an edit list hides frames": timeline.edited,
        "the file begins before its first key frame": timeline.skips > 0,
        "a key frame is not an instant refresh": not timeline.only_instant,
        "the picture is mirrored": a * d - b * c < 0,
        "a picture outside of MP4 and MOV is turned": orientation != UPRIGHT and timeline.container != "mov",
        "a packet holds no picture": not timeline.all_pictures,
        "there are several video streams": any(note.reason == "several_streams" for note in timeline.notes),
    }
    return next((doubt for doubt, holds in doubts.items() if holds), None)


class DecordDecoder:
    """decord, one thread."""

    name: DecoderName = "decord"

    def __init__(self, source: str | bytes, timeline: Timeline) -> None:
        self.timeline, self.notes = timeline, list(timeline.notes)
        # Imported here: it has no wheel for some machines.
        try:
            import decord
        except (ImportError, OSError) as error:
            raise UnreadableVideoError(f"decord cannot be loaded: {first_line(error)}") from error
        with reading():
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            self._reader: Any = decord.VideoReader(file, num_threads=1)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, see ``Decoder``."""
        self._check(indices)
        for index in indices:
            # One at a time: a batch of large frames would need many times the memory of the result.
            with reading():
                image: UInt8[np.ndarray, "height width 3"] = self._reader[index].asnumpy()
            if image.shape[2] != 3:
                # decord divides the bytes of a line by the width, so for narrow frames it counts padding as channels.
                raise UnreadableVideoError(f"decord returns frames {image.shape[1]} pixels wide with their padding")
            yield Frame(index, self.timeline.times_s[index], image)

    def close(self) -> None:
        """Frees the reader, which otherwise keeps frames buffered."""
        self._reader = None

    def _check(self, indices: Sequence[int]) -> None:
        """Compares decord's times of the first and the last wanted frame with those of the file."""
        times_s = self.timeline.times_s
        with reading():
            count = len(self._reader)
            ends = [0, indices[0], indices[-1]]
            # NaN is near nothing, so another number of frames fails the comparison below as well.
            found = self._reader.get_frame_timestamp(ends)[:, 0] if count == len(times_s) else np.full(3, np.nan)
        # Both after frame 0, as the times of the timeline are.
        off = np.abs(found - found[0] - [times_s[index] for index in ends])
        if not np.all(off <= 0.5 / self.timeline.fps):
            raise WrongTimesError(f"decord counts {count} frames of {len(times_s)}, or shows them at other times")
