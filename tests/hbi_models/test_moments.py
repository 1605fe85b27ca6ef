"""The frames that match best, against a search through all runs of frames."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hbi_models.axes import TokenLevel
from hbi_models.moments import best_moment, frame_relevance


@given(st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=9))
def test_no_other_run_of_frames_exceeds_the_mean_by_more(values: list[float]) -> None:
    moment = best_moment(values, [float(place) for place in range(len(values))], float(len(values)))
    mean = sum(values) / len(values)
    runs = {(i, j): sum(values[i:j]) - mean * (j - i) for i, j in combinations(range(len(values) + 1), 2)}
    assert runs[moment.first, moment.stop] == pytest.approx(max(runs.values()), abs=1e-6)


def test_a_frame_lasts_until_the_next_one_or_the_end() -> None:
    assert best_moment([0.0, 1.0, 1.0, 0.0], [0.0, 0.5, 1.0, 1.5], 2.0).start_s == 0.5
    assert best_moment([0.0, 1.0, 1.0, 0.0], [0.0, 0.5, 1.0, 1.5], 2.0).end_s == 1.5
    assert best_moment([0.0, 0.0, 1.0], [0.0, 0.5, 1.0], 1.7).end_s == 1.7


def test_equal_frames_are_the_whole_video() -> None:
    moment = best_moment([0.3, 0.3, 0.3], [1.0, 2.0, 3.0], 3.5)
    assert (moment.start_s, moment.end_s, moment.first, moment.stop) == (1.0, 3.5, 0, 3)


def test_the_frame_that_holds_a_word_is_the_relevant_one() -> None:
    eye = torch.eye(4)
    text = TokenLevel(eye[None, :1], torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    video = TokenLevel(eye[None].roll(1, 1), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4))
    assert frame_relevance(text, video).tolist() == [[0, 1, 0, 0]]
