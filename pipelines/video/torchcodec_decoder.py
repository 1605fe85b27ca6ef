"""torchcodec, an optional decoder by PyTorch (extra ``torchcodec``), which needs FFmpeg's libraries on the machine.

On a GPU it decodes with NVDEC, the GPU's own video decoder. It counts frames in the order in which they are shown, and
says the time of each that it returns. Where this is not the time of the wanted frame, PyAV reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from pipelines.video.decoder import DecoderName, Frame
from pipelines.video.errors import UnreadableVideoError, WrongTimesError, first_line, reading
from pipelines.video.orientation import UPRIGHT, Matrix
from pipelines.video.timeline import Note, Timeline


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Which stream of a file is decoded, and the unit of its times in seconds."""

    index: int
    unit_s: Fraction


@lru_cache(maxsize=1)
def torchcodec_problem() -> str | None:
    """Why torchcodec cannot be used in this process; None if it can. Loads PyTorch at the first call."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except ModuleNotFoundError as error:
        return f"torchcodec is not installed ({first_line(error)}): pip install 'hbi-on-ray[torchcodec]'"
    except (ImportError, OSError, RuntimeError) as error:
        # A RuntimeError says that no FFmpeg was found.
        return f"torchcodec cannot be loaded: {first_line(error)}"
    return None


@lru_cache(maxsize=1)
def nvdec_problem() -> str | None:
    """Why this process cannot decode on a GPU; None if it can, and then it has begun to use the GPU."""
    if problem := torchcodec_problem():
        return problem
    import torch

    try:
        # CUDA takes most of its address space here, before a limit on it is set.
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError) as error:
        # An AssertionError says that PyTorch was built without CUDA.
        return f"no GPU can be used: {first_line(error)}"
    return None


def torchcodec_doubt(timeline: Timeline, orientation: Matrix = UPRIGHT) -> str | None:
    """Why torchcodec would return wrong frames of a file, or none; None if it may be asked."""
    doubts = {
        "frames have no presentation times to compare torchcodec's with": timeline.pts is None,
        "torchcodec is wrong about the times of transport streams": timeline.container in ("mpegts", "mpeg"),
        "torchcodec returns frames before the first key frame": timeline.skips > 0,
        "torchcodec shows frames that an edit list hides": timeline.edited,
        "torchcodec may leave a picture turned or mirrored": orientation != UPRIGHT,
    }
    return next((doubt for doubt, holds in doubts.items() if holds), None)


class TorchcodecDecoder:
    """torchcodec, one thread, or NVDEC.

    Raises:
        UnreadableVideoError: it cannot be opened, or the GPU does not decode this kind of video.
    """

    def __init__(
        self,
        source: str | bytes,
        timeline: Timeline,
        place: StreamPlace,
        *,
        name: Literal["torchcodec", "nvdec"] = "torchcodec",
    ) -> None:
        from torchcodec.decoders import VideoDecoder

        self.name: DecoderName = name
        self.timeline, self.notes, self._unit_s = timeline, list[Note](timeline.notes), place.unit_s
        with reading():
            self._reader: Any = VideoDecoder(
                source,
                stream_index=place.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cuda" if name == "nvdec" else "cpu",
            )
            # It would decode on the CPU, and convert colours on the GPU.
            if name == "nvdec" and self._reader.cpu_fallback:
                raise UnreadableVideoError(str(self._reader.cpu_fallback))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, see ``Decoder``."""
        pts, count = self.timeline.pts, len(self.timeline.times_s)
        if pts is None:
            raise UnreadableVideoError("frames have no presentation times")
        if len(self._reader) != count:
            raise WrongTimesError(f"{self.name} counts {len(self._reader)} frames of {count}")
        for index in indices:
            # One at a time: a batch of large frames would need many times the memory of the result.
            with reading():
                found = self._reader.get_frame_at(index)
            # Times are whole units, so two that are nearer are the same but for rounding.
            if abs(found.pts_seconds - pts[index] * self._unit_s) > self._unit_s / 2:
                raise WrongTimesError(f"{self.name} shows another frame at {self.timeline.times_s[index]:.2f} s")
            yield Frame(index, self.timeline.times_s[index], found.data.cpu().numpy())

    def close(self) -> None:
        """Frees the reader."""
        self._reader = None
