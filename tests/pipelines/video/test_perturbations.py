"""Perturbations of stored frames: their kind, their strength, and that they are the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.video.perturbations import LEVELS, STRENGTHS, perturb

SPATIAL = [name for name in LEVELS if name not in ("drop frames", "reverse", "shuffle")]


def clip(frames: int = 8, size: int = 64) -> np.ndarray:
    """A moving coloured square over a gradient, a different picture in every frame."""
    video = np.zeros((frames, size, size, 3), np.uint8)
    video[:] = np.linspace(20, 90, size, dtype=np.uint8)[:, None, None]
    for frame in range(frames):
        left = frame * size // (2 * frames)
        video[frame, size // 4 : size // 2, left : left + size // 3] = (220, 40, 90)
    return video


def test_there_are_a_dozen_at_three_strengths() -> None:
    assert len(LEVELS) == 12 and STRENGTHS == (1, 2, 3)


@pytest.mark.parametrize("name", SPATIAL)
def test_pictures_change_more_with_the_strength_and_keep_their_form(name: str) -> None:
    frames = clip()
    before = frames.copy()
    changed = [perturb(frames, name, strength, "video1") for strength in STRENGTHS]
    assert np.array_equal(frames, before), "the input is not modified"
    for other in changed:
        assert (other.shape, other.dtype) == (frames.shape, frames.dtype)
    distances = [np.abs(other.astype(float) - frames).mean() for other in changed]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", LEVELS)
def test_a_video_is_perturbed_alike_everywhere_and_any_length_is_taken(name: str) -> None:
    for frames in (clip(), clip(1), clip(3, 30)):
        for strength in STRENGTHS:
            found = perturb(frames, name, strength, "video1")
            assert 1 <= len(found) <= len(frames)
            assert np.array_equal(found, perturb(frames, name, strength, "video1"))


def test_frames_are_dropped_and_the_others_keep_their_order() -> None:
    frames = clip(8)
    for strength, left in zip(STRENGTHS, (6, 4, 2), strict=True):
        kept = perturb(frames, "drop frames", strength, "video1")
        places = [next(place for place in range(8) if np.array_equal(frames[place], frame)) for frame in kept]
        assert len(kept) == left and places == sorted(set(places))


def test_the_order_is_reversed_from_the_end_on() -> None:
    frames = clip(6)
    assert np.array_equal(perturb(frames, "reverse", 3, "video1"), frames[::-1])
    assert np.array_equal(perturb(frames, "reverse", 1, "video1"), frames[[0, 1, 2, 3, 5, 4]])


def test_shuffled_frames_are_the_same_frames() -> None:
    frames = clip(8)
    found = perturb(frames, "shuffle", 3, "video1")
    assert not np.array_equal(found, frames)
    assert sorted(frame.tobytes() for frame in found) == sorted(frame.tobytes() for frame in frames)
    windowed = perturb(frames, "shuffle", 1, "video1")
    for start in range(0, 8, 2):
        pair = {frame.tobytes() for frame in windowed[start : start + 2]}
        assert pair == {frame.tobytes() for frame in frames[start : start + 2]}


def test_jpeg_10_is_among_them_and_unknown_ones_are_refused() -> None:
    assert 10 in LEVELS["jpeg"]
    with pytest.raises(ValueError, match="no perturbation 'rain'; there are: blur, dark"):
        perturb(clip(), "rain", 1, "video1")
    with pytest.raises(ValueError, match="strength is 4"):
        perturb(clip(), "blur", 4, "video1")
