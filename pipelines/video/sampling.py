"""Which frames of a video are used: a few per second, then evenly thinned to a maximum.

The pipeline uses ``sample_times``, which considers when frames are shown. Where the rate is constant it counts frames,
as ``sample_frames`` does. For a whole file this agrees with the published implementation's decord path wherever that is
defined. The two ``published_`` functions keep the published arithmetic for comparison, with its whole-second segments
and its failures.

A rate that is published as frames per second becomes a stride in frames, rounded half to even:

    fps 25, rate 1:   |0 . . . |25 . . . |50 . . .   every 25th frame
    max_frames 2:      0                  50         evenly spaced among those, rounded down
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_TIME_TOLERANCE_FRAMES = 1e-6
"""A boundary this close to a frame's time counts as that time: 0.1 s at 30 fps is frame 3."""

_TIME_TOLERANCE_S = 1e-6
"""The same for times that are written in the file."""


def sample_times(
    times_s: Sequence[float],
    *,
    shown_s: float,
    constant_fps: float | None,
    max_frames: int,
    rate: float,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Indices of the sampled frames, increasing; empty if the segment lies outside the video.

    A segment holds the frames that begin to be shown in it or, if there are none, the frame that is on screen. Without
    a constant rate, one frame is taken for every ``1 / rate`` seconds after the first: the one on screen at that time.

    Args:
        times_s: when each frame of the video is shown, increasing, from 0.
        shown_s: when the last one ends.
        constant_fps: frames per second, if no frame is more than half a frame away from its place.
        max_frames: most frames to return.
        rate: frames per second to sample; above the video's, every frame is.
        start_s: start of the half-open segment in seconds after the first frame; absent: start of the video.
        end_s: end of the half-open segment; absent: end of the video.

    Raises:
        ValueError: ``constant_fps``, ``rate`` or ``max_frames`` is not positive.
    """
    if constant_fps is not None:
        found = sample_frames(
            fps=constant_fps,
            num_frames=len(times_s),
            max_frames=max_frames,
            rate=rate,
            start_s=start_s,
            end_s=end_s,
        )
    else:
        _check(1.0, len(times_s), max_frames, rate)
        times = np.asarray(times_s)
        first, stop = 0, len(times)
        if start_s is not None:
            first = int(np.searchsorted(times, start_s - _TIME_TOLERANCE_S))
        if end_s is not None:
            stop = int(np.searchsorted(times, end_s - _TIME_TOLERANCE_S))
        found = []
        if first < stop:
            # A frame is shown at a wanted time if a whole number lies between its own place and the next one's. It is
            # frames that are looked at, and not wanted times, which may be any number where a clock leaps.
            places = (times[first:stop] - times[first]) * rate
            following = np.ceil(places - _TIME_TOLERANCE_FRAMES)
            # Wanted times end with the last frame: it is taken if one falls on it.
            is_last = following[-1] <= places[-1] + _TIME_TOLERANCE_FRAMES
            chosen = np.append(following[:-1] < following[1:], is_last)
            found = _thin((first + np.flatnonzero(chosen)).tolist(), max_frames)
    start = max(0.0, start_s or 0.0)
    if found or not times_s or start > shown_s - _TIME_TOLERANCE_S or (end_s is not None and end_s <= start):
        return found
    return [int(np.searchsorted(times_s, start + _TIME_TOLERANCE_S, side="right")) - 1]


def sample_frames(
    *,
    fps: float,
    num_frames: int,
    max_frames: int,
    rate: float,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Indices of the sampled frames, increasing; empty if the segment lies outside the video.

    Args:
        fps: frames per second of the video.
        num_frames: frames that the video has.
        max_frames: most frames to return.
        rate: frames per second to sample; above ``fps``, every frame is.
        start_s: start of the half-open segment in seconds; absent: start of the video.
        end_s: end of the half-open segment in seconds; absent: end of the video.

    Raises:
        ValueError: ``fps``, ``rate`` or ``max_frames`` is not positive, or ``num_frames`` negative.
    """
    _check(fps, num_frames, max_frames, rate)
    first = 0 if start_s is None else max(0, _first_frame_at(start_s, fps))
    stop = num_frames if end_s is None else min(num_frames, _first_frame_at(end_s, fps))
    return _thin(range(first, stop, max(1, round(fps / rate))), max_frames)


def published_decord_frames(
    *,
    fps: float,
    num_frames: int,
    max_frames: int,
    rate: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Indices that the published decord path samples (MSR-VTT, video question answering).

    Segments are truncated to whole seconds, put in order, made at least a second long, and
    include the frame at their end.

    Raises:
        ValueError: ``fps`` is at most half of ``rate``: the published stride is then zero.
    """
    _check(fps, num_frames, max_frames, rate)
    stride = round(fps / rate)
    if stride == 0:
        raise ValueError(
            f"a video with {fps:g} frames per second sampled at {rate:g} per second gives a stride of zero in the "
            "published arithmetic; use sample_frames, whose stride is at least one frame"
        )
    first, last = 0, num_frames - 1
    if start_s is not None and end_s is not None:
        start, end = _whole_seconds(start_s, end_s)
        first, last = int(start * fps), int(min(end * fps, num_frames - 1))
    return _thin(range(first, last + 1, stride), max_frames)


def published_cv2_frames(
    *, fps: float, num_frames: int, max_frames: int, rate: int, start_s: float, end_s: float
) -> list[int]:
    """Indices that the published OpenCV path samples (ActivityNet, DiDeMo).

    The frames per second are truncated to a whole number, so that sampling drifts ahead of the
    seconds; every second from start to end, inclusive, contributes ``rate`` frames.

    Raises:
        ValueError: a second of the video holds fewer than ``rate`` frames, where the published
            code fails.
    """
    _check(fps, num_frames, max_frames, rate)
    whole_fps = int(fps)
    if whole_fps < rate:
        raise ValueError(
            f"a video with {fps:g} frames per second cannot give {rate:g} per second in the published arithmetic; "
            "use sample_frames, which then takes every frame"
        )
    start, end = _whole_seconds(start_s, end_s)
    end = min(end, math.ceil(num_frames / whole_fps))
    offsets = range(0, whole_fps, whole_fps // rate)[:rate]
    positions = [second * whole_fps + offset for second in range(start, end + 1) for offset in offsets]
    return _thin([position for position in positions if position < num_frames], max_frames)


def _first_frame_at(time_s: float, fps: float) -> int:
    return math.ceil(time_s * fps - _TIME_TOLERANCE_FRAMES)


def _whole_seconds(start_s: float, end_s: float) -> tuple[int, int]:
    start, end = sorted((max(0, int(start_s)), max(0, int(end_s))))
    return start, end if end > start else start + 1


def _thin(positions: Sequence[int], max_frames: int) -> list[int]:
    if len(positions) <= max_frames:
        return list(positions)
    # dtype=int rounds down, as in the published code.
    return [positions[int(i)] for i in np.linspace(0, len(positions) - 1, num=max_frames, dtype=int)]


def _check(fps: float, num_frames: int, max_frames: int, rate: float) -> None:
    for name, value in (("fps", fps), ("rate", rate), ("max_frames", max_frames)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be a positive finite number")
    if num_frames < 0:
        raise ValueError(f"num_frames is {num_frames}; it must not be negative")
