from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.recipe.frames import FramesConfig
from pipelines.video.decode_child import resize_short_side
from pipelines.video.decode_process import DecodeProcess
from pipelines.video.decoders import PyAVDecoder
from pipelines.video.extraction import make_extract_frames
from pipelines.workspace.records import FRAMES


def manifest_row(path: Path | str, **changes: Any) -> dict[str, Any]:
    """A row of the manifest for the file at ``path``."""
    row = {"video_id": "clip", "uri": str(path), "key": "k", "start_s": None, "end_s": None}
    return {**row, **changes}


def _decode(images: list[bytes]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image))) for image in images]


def test_rows_follow_the_schema_with_and_without_an_error(process: DecodeProcess, write_video: Any) -> None:
    extract = make_extract_frames(FramesConfig(short_side_px=32), process=process)
    rows = [extract(manifest_row(write_video("a.mp4"))), extract(manifest_row("/nowhere/b.mp4"))]
    assert all(set(row) == set(FRAMES.names) for row in rows)
    table = pa.Table.from_pylist(rows, schema=FRAMES)
    table.validate(full=True)
    assert table.column("error_reason").to_pylist() == [None, "missing"]
    assert table.column("decoder").to_pylist() == ["pyav", None]


@pytest.mark.slow
def test_stored_frames_are_the_decoded_ones_resized_as_clip_does(
    process: DecodeProcess, real_videos: dict[str, Path]
) -> None:
    path = real_videos["bikes"]
    config = FramesConfig(format="png", short_side_px=112, max_frames=4)
    row = make_extract_frames(config, process=process)(manifest_row(path))
    assert row["frame_index"] == [0, 75, 150, 225]
    assert row["time_s"] == pytest.approx([0, 3, 6, 9])
    assert (row["height_px"], row["width_px"]) == (112, 263)
    for stored, frame in zip(_decode(row["frames"]), PyAVDecoder(str(path)).frames(row["frame_index"]), strict=True):
        # The definition of the published transform: PIL's bicubic, long side int(112 * 640 / 272).
        expected = Image.fromarray(frame.image).resize((263, 112), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(stored, np.asarray(expected))


def test_resizing_agrees_with_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    rng = np.random.default_rng(0)
    for height, width in ((31, 50), (50, 31), (24, 24), (100, 333)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = transforms.Resize(24, interpolation=transforms.InterpolationMode.BICUBIC)(image)
        np.testing.assert_array_equal(np.asarray(resize_short_side(image, 24)), np.asarray(expected))


@pytest.mark.slow
def test_jpeg_is_close_to_lossless_and_smaller(process: DecodeProcess, real_videos: dict[str, Path]) -> None:
    rows = [
        make_extract_frames(FramesConfig(format=form), process=process)(manifest_row(real_videos["bikes"]))
        for form in ("jpeg", "png")
    ]
    jpeg, png = (_decode(row["frames"]) for row in rows)
    # Mean error of JPEG at quality 90 on a natural picture: one to two levels.
    assert np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(jpeg, png, strict=True)]) < 3
    assert sum(map(len, rows[0]["frames"])) < sum(map(len, rows[1]["frames"])) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with space.mp4", "ünïcode.mp4", "-leading-dash.mp4", "hash#and%20.mp4"])
def test_any_file_name_is_fine(process: DecodeProcess, write_video: Any, name: str) -> None:
    row = make_extract_frames(FramesConfig(short_side_px=32), process=process)(manifest_row(write_video(name)))
    assert row["error_reason"] is None
    assert row["frame_index"] == [0, 10]


@pytest.mark.slow
def test_one_frame_is_enough(process: DecodeProcess, write_video: Any) -> None:
    extract = make_extract_frames(FramesConfig(short_side_px=32), process=process)
    row = extract(manifest_row(write_video("a.mp4", num_frames=1)))
    assert (row["frame_index"], row["source_frames"]) == ([0], 1)


@pytest.mark.slow
def test_a_segment_gives_its_frames_and_an_empty_one_a_reason(process: DecodeProcess, write_video: Any) -> None:
    extract = make_extract_frames(FramesConfig(short_side_px=32, fps=10), process=process)
    path = write_video("a.mp4")
    assert extract(manifest_row(path, start_s=0.5, end_s=0.8))["frame_index"] == [5, 6, 7]
    row = extract(manifest_row(path, start_s=5.0, end_s=7.0))
    assert row["error_reason"] == "no_frames"
    assert "20 frames, 2.00 s" in row["error_message"]


@pytest.mark.slow
def test_bad_files_become_rows_with_a_reason_and_one_line(
    process: DecodeProcess, tmp_path: Path, real_videos: dict[str, Path], remux: Any
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    _write_audio(tmp_path / "audio.mp4")
    # Once with the index at the end, which is lost, and once with it in front, which stays.
    whole = real_videos["carphone_pristine"].read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    cut = remux(real_videos["carphone_pristine"], "cut_off.mp4", index_in_front=True)
    cut.write_bytes(cut.read_bytes()[: len(whole) // 2])
    (tmp_path / "folder.mp4").mkdir()
    extract = make_extract_frames(FramesConfig(), process=process)
    rows = {path.name: extract(manifest_row(path)) for path in sorted(tmp_path.iterdir())}
    reasons = {name: row["error_reason"] for name, row in rows.items()}
    assert reasons == {
        "audio.mp4": "undecodable",
        "cut_off.mp4": "undecodable",
        "empty.mp4": "undecodable",
        "folder.mp4": "missing",
        "no_index.mp4": "undecodable",
        "text.mp4": "undecodable",
    }
    assert all(row["error_message"] and "\n" not in row["error_message"] for row in rows.values())
    assert all(row["frames"] == [] for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("width", [24, 48, 72])
def test_narrow_frames_are_right_and_refused_where_decord_is_to_read_them(
    process: DecodeProcess, write_video: Any, width: int
) -> None:
    path = write_video("narrow.mp4", width=width)
    row = make_extract_frames(FramesConfig(format="png", short_side_px=24), process=process)(manifest_row(path))
    assert (row["error_reason"], row["decoder"], row["frame_index"]) == (None, "pyav", [0, 10])
    assert [image.shape[2] for image in _decode(row["frames"])] == [3, 3]
    assert [image.mean() for image in _decode(row["frames"])] == pytest.approx([0, 80], abs=3)
    only_decord = make_extract_frames(FramesConfig(decoder="decord"), process=process)(manifest_row(path))
    assert only_decord["error_reason"] == "undecodable"
    assert f"{width} pixels wide" in only_decord["error_message"]


def test_an_object_is_read_from_its_store(
    process: DecodeProcess, write_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video("a.mp4")
    local = make_extract_frames(FramesConfig(short_side_px=32), process=process)(manifest_row(path))
    filesystem = pa.fs.SubTreeFileSystem(str(path.parent), pa.fs.LocalFileSystem())
    monkeypatch.setattr("pipelines.video.extraction.resolve", lambda uri: (filesystem, uri.rpartition("/")[2]))
    remote = make_extract_frames(FramesConfig(short_side_px=32), process=process)(manifest_row("store://bucket/a.mp4"))
    assert remote == local
    tiny = FramesConfig(short_side_px=32, max_memory_gb=1e-6)
    row = make_extract_frames(tiny, process=process)(manifest_row("store://bucket/a.mp4"))
    assert row["error_reason"] == "memory"


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
