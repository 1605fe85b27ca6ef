"""Case j: frame indices of the published data loaders."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.video.sampling import published_cv2_frames, published_decord_frames, sample_frames


def _arguments(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "fps": row["fps"],
        "num_frames": row["n_frames"],
        "max_frames": row["max_frames"],
        "rate": row["framerate"],
        "start_s": row["start"],
        "end_s": row["end"],
    }


def test_decord_path_samples_the_published_frames(golden: Any) -> None:
    rows = [row for row in golden.json("j_frames")["decord"] if "error" not in row]
    assert rows
    for row in rows:
        assert published_decord_frames(**_arguments(row)) == row["indices"], row
        assert sum(row["mask"]) == len(row["indices"])


def test_cv2_path_samples_the_published_frames(golden: Any) -> None:
    rows = [row for row in golden.json("j_frames")["cv2"] if "error" not in row]
    assert rows
    for row in rows:
        assert published_cv2_frames(**_arguments(row)) == row["indices"], row


def test_default_sampling_equals_the_published_one_on_whole_files(golden: Any) -> None:
    rows = [row for row in golden.json("j_frames")["decord"] if "error" not in row and row["start"] is None]
    assert rows
    for row in rows:
        assert sample_frames(**_arguments(row)) == row["indices"], row


def test_published_failures_fail_only_where_the_published_arithmetic_is_asked_for(golden: Any) -> None:
    published = {"decord": published_decord_frames, "cv2": published_cv2_frames}
    for path, function in published.items():
        for row in golden.json("j_frames")[path]:
            if "error" in row:
                with pytest.raises(ValueError, match="published arithmetic"):
                    function(**_arguments(row))
                assert sample_frames(**_arguments(row))
