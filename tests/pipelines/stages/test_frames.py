"""What the stage ``frames`` writes of videos that were decoded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.stages.frames import commit_frames
from pipelines.workspace.records import ERRORS_FILE, NOTES, NOTES_FILE
from pipelines.workspace.storage import Storage


def test_every_note_is_a_row_of_its_own_and_counted(tmp_path: Path) -> None:
    notes = [None, "late_start: 5 frames: gone\nno_picture: 1 of 12", "late_start: 2 frames", None]
    found = pa.table(
        {
            "video_id": list("abcd"),
            "uri": [f"/{name}.ts" for name in "abcd"],
            "key": list("abcd"),
            "split": ["train"] * 4,
            "shard": ["s"] * 4,
            "row": pa.array(range(4), pa.int32()),
            "decoder": ["pyav"] * 3 + [None],
            "error_reason": [None] * 3 + ["undecodable"],
            "error_message": [None] * 3 + ["why"],
            "notes": pa.array(notes, pa.string()),
        }
    )
    output = Storage(str(tmp_path))
    counts = commit_frames(output, found, 0.5)
    assert counts["rows"] == 3 and counts["decoded_by_pyav"] == 3
    assert (counts["notes_late_start"], counts["notes_no_picture"], counts["errors_undecodable"]) == (2, 1, 1)
    table = output.read_table(NOTES_FILE)
    assert table.schema.equals(NOTES)
    assert [(row["video_id"], row["reason"], row["message"]) for row in table.to_pylist()] == [
        ("b", "late_start", "5 frames: gone"),
        ("b", "no_picture", "1 of 12"),
        ("c", "late_start", "2 frames"),
    ]
    assert len(output.read_table(ERRORS_FILE)) == 1


def test_how_often_pyav_took_over_from_torchcodec_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = "not_torchcodec: read by PyAV, since torchcodec is not installed"
    names = ["video_id", "uri", "key", "split", "shard", "decoder"]
    found = pa.table(
        {name: list("abc") for name in names}
        | {"row": pa.array(range(3), pa.int32()), "notes": [None, note, note]}
        | {name: pa.nulls(3, pa.string()) for name in ("error_reason", "error_message")}
    )
    assert commit_frames(Storage(str(tmp_path)), found, 0.5)["notes_not_torchcodec"] == 2
    (said,) = [record.getMessage() for record in caplog.records if "PyAV" in record.getMessage()]
    assert said.startswith("frames: 2 of 3 videos: read by PyAV, since torchcodec is not installed (notes.parquet")


def test_without_notes_the_table_is_empty(tmp_path: Path) -> None:
    names = ["video_id", "uri", "key", "split", "shard", "decoder", "error_reason", "error_message", "notes"]
    found = pa.table({name: pa.array([], pa.string()) for name in names} | {"row": pa.array([], pa.int32())})
    output = Storage(str(tmp_path))
    assert commit_frames(output, found, 0.5) == {"rows": 0, "errors": 0}
    assert len(output.read_table(NOTES_FILE)) == 0
