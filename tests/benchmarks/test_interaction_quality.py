from __future__ import annotations

import numpy as np
import pytest

from benchmarks.interaction_quality import ATTRIBUTES, MAPS, auc, interval, markdown, score_words, summarise
from hbi_models.configs import LEVELS


def test_auc_counts_pairs_and_ties_by_half() -> None:
    shown = np.array([True, False, True, False])
    assert auc(np.array([3.0, 2.0, 1.0, 0.0]), shown) == 75
    assert auc(np.array([1.0, 1.0, 1.0, 1.0]), shown) == 50
    assert auc(np.array([-1.0, 5.0, -2.0, 6.0]), shown) == 0


def test_a_word_is_scored_by_the_frames_that_show_it() -> None:
    values = np.zeros((5, 3))
    values[2] = [0.1, 0.2, 0.9]  # "red", after the start token and "a"
    words = [
        {"span": [1, 2], "attribute": "colour", "event": 0, "frames": [8, 20]},
        {"span": [2, 3], "attribute": "shape", "event": 0, "frames": [0, 20]},  # always visible
    ]
    assert list(score_words(words, values, [0, 4, 8])) == [("colour", 100.0)]
    # The end of an interval is outside of it.
    words[0]["frames"] = [0, 8]
    assert list(score_words(words, values, [0, 4, 8])) == [("colour", 0.0)]


def test_the_words_of_a_motion_are_scored_together() -> None:
    values = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    words = [{"span": [0, 2], "attribute": "motion", "event": 0, "frames": [4, 9]}]
    assert list(score_words(words, values, [0, 4])) == [("motion", 100.0)]


def test_intervals_are_over_seeds_or_over_clips() -> None:
    clips = [[100.0], [0.0, 100.0], []]
    one = interval([clips])
    assert one["value"] == pytest.approx(200 / 3)
    assert one["words"] == 3
    assert one["low"] < one["value"] < one["high"]
    several = interval([[[60.0]], [[70.0]], [[80.0]]])
    assert (several["value"], several["high"] - several["value"]) == (70, pytest.approx(4.3027 * 10 / 3**0.5, abs=1e-3))


def test_the_table_has_a_row_for_every_level_and_map() -> None:
    scores = {(level, name, kind): [[60.0], [80.0]] for level in LEVELS for name in MAPS for kind in ATTRIBUTES}
    lines = markdown(summarise([scores, scores])).splitlines()
    assert len(lines) == 2 + len(LEVELS) * len(MAPS)
    assert lines[2] == "| entity | exact | " + " | ".join(["70.0 (70.0 to 70.0)"] * 4) + " | 0.0 (0.0 to 0.0) |"
