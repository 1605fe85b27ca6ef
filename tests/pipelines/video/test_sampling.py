from __future__ import annotations

import itertools
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.video.sampling import published_cv2_frames, published_decord_frames, sample_frames, sample_times


@given(
    fps=st.floats(0.1, 240),
    num_frames=st.integers(0, 5000),
    max_frames=st.integers(1, 64),
    rate=st.floats(0.05, 60),
    segment=st.none() | st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_samples_are_increasing_frames_of_the_segment(
    fps: float, num_frames: int, max_frames: int, rate: float, segment: tuple[float, float] | None
) -> None:
    start_s, end_s = segment or (None, None)
    frames = sample_frames(
        fps=fps, num_frames=num_frames, max_frames=max_frames, rate=rate, start_s=start_s, end_s=end_s
    )
    assert len(frames) <= max_frames
    assert frames == sorted(set(frames))
    assert all(0 <= frame < num_frames for frame in frames)
    if segment:
        assert all(segment[0] - 1e-5 <= frame / fps < segment[1] + 1e-5 for frame in frames)
    elif num_frames:
        assert frames[0] == 0


def test_a_segment_is_half_open() -> None:
    frames = sample_frames(fps=10, num_frames=100, max_frames=99, rate=10, start_s=0.3, end_s=0.7)
    assert frames == [3, 4, 5, 6]


def test_rate_above_the_frame_rate_takes_every_frame_unless_the_published_arithmetic_is_asked_for() -> None:
    assert sample_frames(fps=2, num_frames=5, max_frames=9, rate=8) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="stride of zero"):
        published_decord_frames(fps=2, num_frames=5, max_frames=9, rate=8)
    with pytest.raises(ValueError, match="published arithmetic"):
        published_cv2_frames(fps=2, num_frames=5, max_frames=9, rate=8, start_s=0, end_s=1)


@pytest.mark.parametrize(("name", "value"), [("fps", 0.0), ("fps", float("nan")), ("rate", -1.0), ("max_frames", 0)])
def test_impossible_numbers_are_refused(name: str, value: float) -> None:
    arguments = {"fps": 25.0, "num_frames": 10, "max_frames": 12, "rate": 1.0} | {name: value}
    with pytest.raises(ValueError, match=name):
        sample_frames(**arguments)  # type: ignore[arg-type]


@given(
    steps=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    rate=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    start_ms=st.none() | st.integers(0, 20_000),
)
def test_without_a_constant_rate_frames_are_those_shown_at_the_wanted_times(
    steps: list[int], rate: float, start_ms: int | None
) -> None:
    times_ms = [0, *itertools.accumulate(steps)]
    frames = sample_times(
        [time / 1000 for time in times_ms],
        shown_s=times_ms[-1] / 1000 + 1,
        constant_fps=None,
        max_frames=10_000,
        rate=rate,
        start_s=None if start_ms is None else start_ms / 1000,
    )
    inside = [time for time in times_ms if time >= (start_ms or 0)]
    if inside:
        wanted = range(inside[0], times_ms[-1] + 1, round(1000 / rate))
        assert frames == sorted({bisect_right(times_ms, time) - 1 for time in wanted})
    else:
        assert len(frames) == (start_ms is not None and start_ms < times_ms[-1] + 1000)


def test_a_clock_that_leaps_costs_no_memory() -> None:
    times = [0.0, 0.1, 1e12]
    assert sample_times(times, shown_s=1e12 + 1, constant_fps=None, max_frames=12, rate=1) == [0, 1, 2]
