"""Segments of one file, from the user's captions through the manifest to frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.manifest import build_manifest
from pipelines.recipe.data import DataConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.video.decode_process import DecodeProcess
from pipelines.video.extraction import make_extract_frames


def frames_of(lines: str, folder: Path, process: DecodeProcess) -> dict[tuple[float | None, float | None], Any]:
    """Rows of the frames stage by segment; every frame is sampled."""
    (folder / "captions.csv").write_text(f"path,caption,split,start_s,end_s\n{lines}\n")
    config = DataConfig(dataset="captions_file", annotations=str(folder / "captions.csv"), validation_videos=0)
    extract = make_extract_frames(FramesConfig(fps=10, max_frames=100, short_side_px=32), process=process)
    rows = build_manifest(config).table.to_pylist()
    return {(row["start_s"], row["end_s"]): extract(row) for row in rows}


@pytest.fixture
def two_seconds(write_video: Any) -> Path:
    """The folder of ``a.mp4``: 20 frames, 10 per second."""
    path = write_video("a.mp4", num_frames=20, fps=10)
    assert isinstance(path, Path)
    return path.parent


@pytest.mark.slow
def test_overlapping_segments_share_frames_and_are_videos_of_their_own(
    two_seconds: Path, process: DecodeProcess
) -> None:
    lines = "a.mp4,first,train,0,1\na.mp4,second,train,0.5,1.5\na.mp4,inside,train,0.6,0.8\na.mp4,all,test,,"
    rows = frames_of(lines, two_seconds, process)
    assert {segment: row["frame_index"] for segment, row in rows.items()} == {
        (0, 1): list(range(10)),
        (0.5, 1.5): list(range(5, 15)),
        (0.6, 0.8): [6, 7],
        (None, None): list(range(20)),
    }
    assert len({row["video_id"] for row in rows.values()}) == len({row["key"] for row in rows.values()}) == 4
    # The same moment gives the same picture, whichever segment it is seen in.
    assert rows[0.6, 0.8]["frames"] == rows[0, 1]["frames"][6:8] == rows[0.5, 1.5]["frames"][1:3]


@pytest.mark.slow
def test_a_segment_is_cut_at_the_end_of_the_video_and_one_behind_it_is_an_error(
    two_seconds: Path, process: DecodeProcess
) -> None:
    lines = (
        "a.mp4,over the end,train,1.5,60\na.mp4,behind,train,60,70\na.mp4,at the end,train,2,\na.mp4,in time,train,1.9,"
    )
    rows = frames_of(lines, two_seconds, process)
    assert rows[1.5, 60]["frame_index"] == list(range(15, 20))
    assert rows[1.9, None]["frame_index"] == [19]
    for segment in ((60, 70), (2, None)):
        assert rows[segment]["error_reason"] == "no_frames"
        assert rows[segment]["frames"] == []
    assert rows[60, 70]["error_message"] == "no frame between 60.0 and 70.0 s: the video has 20 frames, 2.00 s"


@pytest.mark.slow
def test_a_segment_between_two_frames_gives_the_one_that_is_shown(two_seconds: Path, process: DecodeProcess) -> None:
    rows = frames_of("a.mp4,between two frames,train,0.51,0.59\na.mp4,around one,train,0.59,0.61", two_seconds, process)
    assert (rows[0.51, 0.59]["frame_index"], rows[0.51, 0.59]["time_s"]) == ([5], [0.5])
    assert rows[0.59, 0.61]["frame_index"] == [6]
    with pytest.raises(ValueError, match=r"line 2: end_s 1 is not after start_s 2\n  line 3: end_s 1 is not after"):
        frames_of("a.mp4,reversed,train,2,1\na.mp4,of no length,train,1,1", two_seconds, process)
