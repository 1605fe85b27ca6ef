"""When something happens in a video: the run of frames that match a text better than the video does on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.similarity import token_cosines, token_weights


@dataclass(frozen=True, slots=True)
class Moment:
    """A part ``[start_s, end_s)`` of a video, and its frames ``[first, stop)``."""

    start_s: float
    end_s: float
    first: int
    stop: int


def frame_relevance(
    text: TokenLevel, videos: TokenLevel, coalitions: float | None = None
) -> Float[Tensor, "videos frames"]:
    """How well every frame of ``videos`` matches one text: the mean of the words' cosines, weighted by their
    importance.

    ``coalitions`` is the model's setting; with it the importance is the expected one.
    """
    count = len(videos.mask)
    repeated = text.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))
    return einsum(
        token_weights(repeated, coalitions),
        token_cosines(repeated, videos),
        "videos words, videos words frames -> videos frames",
    )


def best_moment(relevance: Sequence[float], time_s: Sequence[float], end_s: float) -> Moment:
    """The consecutive frames with the largest sum of relevance above the mean (Bentley's maximum subarray, 1984).

    Of equally good runs the earliest is chosen, and of these the shortest. A frame lasts until the next one is shown,
    the last one until ``end_s``. If all frames are equally relevant, the moment is the whole video.

    Args:
        relevance: of every frame.
        time_s: when every frame is shown.
        end_s: when the video ends.
    """
    mean = sum(relevance) / len(relevance)
    # A best of 1e-9 is more than rounding leaves of equal frames, whose moment is the whole video.
    first, stop, best, start, total = 0, len(relevance), 1e-9, 0, 0.0
    for frame, value in enumerate(relevance):
        if total <= 0:
            start, total = frame, 0.0
        total += value - mean
        if total > best:
            first, stop, best = start, frame + 1, total
    ends = [*time_s[1:], end_s]
    return Moment(float(time_s[first]), float(ends[stop - 1]), first, stop)
