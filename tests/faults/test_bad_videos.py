"""Videos that nobody has checked: each becomes right frames, or a row that says why not."""

from __future__ import annotations

import io
import struct
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.manifest import build_manifest
from pipelines.recipe.data import DataConfig
from pipelines.recipe.frames import FramesConfig
from pipelines.video.decode_child import ExtractSettings
from pipelines.video.decode_process import DecodeProcess, ExtractionError
from pipelines.video.extraction import make_extract_frames
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage
from tests.faults.flaky_s3 import FlakyS3
from tests.pipelines.video.test_extraction import manifest_row

pytestmark = pytest.mark.fault

CONFIG = FramesConfig(short_side_px=32, fps=1, max_frames=12, format="png")


def images(row: dict[str, Any]) -> list[np.ndarray]:
    assert row["error_reason"] is None, row["error_message"]
    return [np.asarray(Image.open(io.BytesIO(image))).astype(int) for image in row["frames"]]


def levels(row: dict[str, Any]) -> list[float]:
    """Mean grey of every frame."""
    return [float(image.mean()) for image in images(row)]


def test_a_variable_frame_rate_is_sampled_by_time(process: DecodeProcess, tmp_path: Path) -> None:
    """Ten frames a second for a second, then one a second: the times are the frames' own."""
    path = tmp_path / "variable.mp4"
    times_ms = [100 * number for number in range(10)] + [1000 * number for number in range(1, 11)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert row["source_frames"] == 20
    assert row["time_s"] == pytest.approx([times_ms[index] / 1000 for index in row["frame_index"]], abs=1e-3)
    assert levels(row) == pytest.approx([8 * index for index in row["frame_index"]], abs=3)
    assert row["frame_index"] == [0, *range(10, 20)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ten_bit.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
        ("ten_bit_h264.mp4", {"pix_fmt": "yuv422p10le"}),
        ("one_pixel.mkv", {"codec": "ffv1", "pix_fmt": "bgr0", "height": 1, "width": 1}),
        ("narrow.mkv", {"codec": "ffv1", "pix_fmt": "bgr0", "height": 37, "width": 3}),
    ],
)
def test_unusual_pixels_and_sizes_give_the_right_frames(
    process: DecodeProcess, write_video: Any, name: str, options: dict[str, Any]
) -> None:
    path = write_video(name, **options)
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert row["frame_index"] == [0, 10]
    # Codecs change a flat grey by a few levels; neighbouring frames differ by eight.
    assert levels(row) == pytest.approx([0, 80], abs=3)
    assert min(row["height_px"], row["width_px"]) == CONFIG.short_side_px


def test_transparency_is_left_out_and_the_colours_stay(process: DecodeProcess, tmp_path: Path) -> None:
    path = tmp_path / "alpha.mov"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("qtrle", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        for alpha in (255, 0):
            pixels = np.full((48, 64, 4), (alpha, 200, 100, 50), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="argb")))
        container.mux(stream.encode(None))
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert [image[0, 0].tolist() for image in images(row)] == [[200, 100, 50]] * 2


def test_a_long_strip_is_refused(process: DecodeProcess, write_video: Any) -> None:
    path = write_video("strip.mp4", num_frames=2, height=16, width=10_000)
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert row["error_reason"] == "undecodable"
    assert row["error_message"] == "frames of 10000×16 pixels are longer than 16 times their short side"


def test_a_very_long_video_is_sampled_over_all_of_it(process: DecodeProcess, write_video: Any) -> None:
    """Ten hours, of which twelve frames are wanted."""
    path = write_video("long.mp4", num_frames=18_000, height=16, width=16, fps=0.5, options={"preset": "ultrafast"})
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert len(row["frame_index"]) == CONFIG.max_frames
    assert row["time_s"][-1] > 0.9 * 36_000
    assert levels(row) == pytest.approx([8 * index % 256 for index in row["frame_index"]], abs=4)


def test_a_video_that_needs_more_memory_than_there_is_costs_itself_only(write_video: Any) -> None:
    """Frames of 4000×4000 pixels are 48 MB each, and as much again while they are made."""
    large = str(write_video("large.mp4", num_frames=2, height=4000, width=4000, options={"preset": "ultrafast"}))
    small = str(write_video("small.mp4"))
    settings = ExtractSettings(rate=1, max_frames=2, short_side_px=32, decoder="auto", format="jpeg", jpeg_quality=90)
    process = DecodeProcess(timeout_s=60, max_memory_gb=0.1)
    with pytest.raises(ExtractionError) as failure:
        process.extract(large, settings)
    # Native code may abort where an allocation fails, before it can say why.
    assert failure.value.reason in ("memory", "crash"), failure.value
    assert process.extract(small, settings).frame_index == [0, 10]
    process.close()


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(process: DecodeProcess, tmp_path: Path) -> None:
    """A GIF of 60 bytes that says it is 65,535 pixels wide and high."""
    bomb = tmp_path / "bomb.gif"
    Image.new("P", (1, 1)).save(bomb, "GIF", save_all=True, append_images=[Image.new("P", (1, 1), 1)])
    content = bytearray(bomb.read_bytes())
    content[6:10] = struct.pack("<HH", 65_535, 65_535)
    bomb.write_bytes(content)
    row = make_extract_frames(CONFIG, process=process)(manifest_row(bomb))
    assert row["error_reason"] == "undecodable"


def test_a_cover_picture_is_no_video(process: DecodeProcess, tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=16_000)
        cover: Any = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 8, 8, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 1)
        container.mux(packet)
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert (row["error_reason"], row["error_message"]) == ("undecodable", "the file has no video stream")


def test_links_to_nothing_and_folders_are_missing(process: DecodeProcess, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    (tmp_path / "folder.mp4").mkdir()
    extract = make_extract_frames(CONFIG, process=process)
    for path in sorted(tmp_path.iterdir()):
        row = extract(manifest_row(path))
        assert row["error_reason"] == "missing"
        assert str(path) in row["error_message"]


def test_a_file_without_permission_says_so(
    process: DecodeProcess, write_video: Any, request: pytest.FixtureRequest
) -> None:
    path: Path = write_video("secret.mp4")
    path.chmod(0)
    # pytest's folders are closed to other accounts, and the file alone is to be what is closed here.
    for folder in [*path.parents][:-1]:
        if folder.owner() == path.owner() and not folder.stat().st_mode & 0o001:
            request.addfinalizer(partial(folder.chmod, folder.stat().st_mode))
            folder.chmod(folder.stat().st_mode | 0o011)
    request.getfixturevalue("unprivileged")
    row = make_extract_frames(CONFIG, process=process)(manifest_row(path))
    assert row["error_reason"] == "missing"
    assert row["error_message"].startswith(f"cannot read {path}: Permission denied")


def test_a_bucket_without_credentials_says_so(
    process: DecodeProcess, s3: FlakyS3, bucket: Storage, write_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write_bytes("a.mp4", write_video("a.mp4").read_bytes())
    extract = make_extract_frames(CONFIG, process=process)
    assert extract(manifest_row(f"{bucket.uri}/a.mp4"))["error_reason"] is None
    s3.refuse(1000, status=403, strikes=lambda request: not request.authorized)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nowhere")
    row = extract(manifest_row(f"{bucket.uri}/a.mp4"))
    assert row["error_reason"] == "missing"
    assert "ACCESS_DENIED" in row["error_message"] and "give permission" in row["error_message"]


def test_a_manifest_over_a_bucket_without_credentials_keeps_the_other_videos(
    s3: FlakyS3, write_video: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = write_video("good.mp4")
    captions = good.with_name("captions.csv")
    lines = [
        "path,caption,split",
        f"{good},one,train",
        "s3://bucket/secret.mp4,two,train",
        "s3://bucket/b.mp4,three,test",
    ]
    captions.write_text("\n".join(lines))
    s3.refuse(1000, status=403)
    manifest = build_manifest(
        DataConfig(dataset="captions_file", annotations=str(captions), validation_videos=0, max_missing_fraction=0.7)
    )
    assert manifest.table.column("uri").to_pylist() == [str(good)]
    assert sorted(manifest.errors.column("uri").to_pylist()) == ["s3://bucket/b.mp4", "s3://bucket/secret.mp4"]
    assert any("ACCESS_DENIED" in message and "2 videos count as missing" in message for message in caplog.messages)


def test_a_store_that_is_away_is_no_fault_of_the_video(
    process: DecodeProcess, s3: FlakyS3, bucket: Storage, write_video: Any, impatient: None
) -> None:
    """It stops the stage: a row of errors would keep the video out of all later runs."""
    bucket.write_bytes("a.mp4", write_video("a.mp4").read_bytes())
    extract = make_extract_frames(CONFIG, process=process)
    s3.refuse(1000)
    with pytest.raises(StorageError, match=rf"cannot read {bucket.uri}/a.mp4.*run the same command again"):
        extract(manifest_row(f"{bucket.uri}/a.mp4"))
    s3.heal()
    assert extract(manifest_row(f"{bucket.uri}/a.mp4"))["frame_index"] == [0, 10]


_SENDS = """
import os, sys
from pipelines.video import decode_child
decode_child.send = lambda file, message: os.write(file, {answer!r})
decode_child.main(sys.argv[1:])
"""

_ANSWERS = """
import sys
from pipelines.video import decode_child
from pipelines.video.messages import Message
decode_child._serve = lambda request: Message({header!r}, {blobs!r})
decode_child.main(sys.argv[1:])
"""

_VIDEO = {
    "height_px": 1,
    "width_px": 1,
    "source_fps": 1,
    "source_frames": 1,
    "source_begin_s": 0,
    "decoder": "pyav",
    "frame_index": [0],
    "time_s": [0],
}


@pytest.mark.parametrize(
    "code",
    [
        # No header, a header that is no object, sizes that lie, more bytes than the machine has.
        _SENDS.format(answer=struct.pack(">QQ", 4, 0) + b"oops"),
        _SENDS.format(answer=struct.pack(">QQ", 2, 0) + b"[]"),
        _SENDS.format(answer=struct.pack(">QQ", 20, 0) + b'{"blob_sizes": [-1]}'),
        _SENDS.format(answer=struct.pack(">QQ", 2, 1 << 62)),
        _SENDS.format(answer=struct.pack(">QQ", 1 << 62, 0)),
        # Messages in good form whose content fits no schema.
        _ANSWERS.format(header={"reason": "fun"}, blobs=[]),
        _ANSWERS.format(header={"video": {"images": 3}}, blobs=[]),
        _ANSWERS.format(header={"video": _VIDEO}, blobs=[]),
        _ANSWERS.format(header={"video": {**_VIDEO, "source_frames": 1 << 40}}, blobs=[b""]),
        _ANSWERS.format(header={"video": {**_VIDEO, "time_s": ["now"]}}, blobs=[b""]),
    ],
    ids=["text", "list", "sizes", "huge", "huge-header", "reason", "fields", "no-image", "range", "type"],
)
def test_a_process_that_a_video_has_taken_over_can_send_nothing_that_counts(write_video: Any, code: str) -> None:
    process = DecodeProcess(timeout_s=30, max_memory_gb=1, command=[sys.executable, "-c", code])
    row = make_extract_frames(CONFIG, process=process)(manifest_row(write_video("a.mp4")))
    assert row["error_reason"] == "crash"
    assert "nonsense" in row["error_message"]
    assert process.pid is None
