from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video.decoders import PyAVDecoder, open_decoder
from pipelines.video.decord_decoder import DecordDecoder, decord_doubt
from pipelines.video.errors import FrameCountError, UnreadableVideoError, WrongTimesError


def _decord(path: str) -> DecordDecoder:
    return DecordDecoder(path, PyAVDecoder(path).timeline)


def _images(decoder: Any, indices: list[int]) -> list[np.ndarray]:
    frames = list(decoder.frames(indices))
    assert [frame.index for frame in frames] == indices
    return [frame.image for frame in frames]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"])
def test_both_decoders_agree_on_real_videos(real_videos: dict[str, Path], name: str) -> None:
    path = str(real_videos[name])
    decord, pyav = open_decoder(path, "decord"), PyAVDecoder(path)
    assert (decord.name, decord.notes, pyav.notes) == ("decord", [], [])
    indices = np.linspace(0, len(pyav.timeline.times_s) - 1, 5, dtype=int).tolist()
    # Compares the times that decord gives with the file's.
    assert len(list(decord.frames(indices))) == len(list(pyav.frames(indices))) == 5
    for expected, actual in zip(_images(decord, indices), _images(PyAVDecoder(path), indices), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
def test_seeking_gives_the_frames_of_sequential_decoding(real_videos: dict[str, Path]) -> None:
    # Key frames at 0, 30, 76, 137, 187 and 242: some of these are reached by seeking, some by reading on.
    indices = [3, 60, 61, 140, 186, 187, 249]
    everything = _images(PyAVDecoder(str(real_videos["bikes"])), list(range(250)))
    for index, image in zip(indices, _images(PyAVDecoder(str(real_videos["bikes"])), indices), strict=True):
        np.testing.assert_array_equal(image, everything[index])


def test_bytes_are_read_like_the_file(real_videos: dict[str, Path]) -> None:
    path = real_videos["carphone_pristine"]
    for choice in ("decord", "pyav"):
        (expected,) = _images(open_decoder(str(path), choice), [50])
        (actual,) = _images(open_decoder(path.read_bytes(), choice), [50])
        np.testing.assert_array_equal(actual, expected)


def test_an_edit_list_is_honoured_by_going_to_pyav(real_videos: dict[str, Path], remux: Any) -> None:
    path = str(remux(real_videos["bikes"], "cut.mp4", frames=(100, 250)))
    decoder = open_decoder(path, "decord")
    assert decoder.name == "pyav"
    assert [note.reason for note in decoder.notes] == ["not_decord"]
    assert "an edit list hides frames" in decoder.notes[0].message
    assert len(decoder.timeline.times_s) == 150
    original = PyAVDecoder(str(real_videos["bikes"]))
    for cut, whole in zip(_images(decoder, [0, 70, 149]), _images(original, [100, 170, 249]), strict=True):
        np.testing.assert_array_equal(cut, whole)
    # The reason for the detour; if this fails, decord has learnt it.
    with pytest.raises(WrongTimesError, match="of 150"):
        list(_decord(path).frames([0, 149]))


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_rotated_videos_come_out_upright(real_videos: dict[str, Path], remux: Any, rotation: int, turns: int) -> None:
    (stored,) = _images(PyAVDecoder(str(real_videos["bikes"])), [10])
    path = str(remux(real_videos["bikes"], "turned.mp4", rotation=rotation))
    for decoder in (_decord(path), PyAVDecoder(path)):
        (turned,) = _images(decoder, [10])
        np.testing.assert_array_equal(turned, np.rot90(stored, turns))


FORMATS = [
    ("odd.mp4", {"height": 47, "width": 65, "pix_fmt": "yuv444p"}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ("hevc.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
    ("stream.ts", {}),
    ("mpeg4.mov", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ("slow.mp4", {"fps": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), FORMATS)
@pytest.mark.parametrize("choice", ["auto", "pyav"])
def test_common_formats_give_the_right_frames(write_video: Any, name: str, options: Any, choice: Any) -> None:
    decoder = open_decoder(str(write_video(name, **options)), choice)
    assert len(decoder.timeline.times_s) == 20
    frames, fps = list(decoder.frames([0, 7, 19])), options.get("fps", 10)
    assert decoder.timeline.rate == pytest.approx(fps)
    # Codecs change a flat grey by a few levels; neighbouring frames differ by eight.
    assert [frame.image.mean() for frame in frames] == pytest.approx([0, 56, 152], abs=3)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 7 / fps, 19 / fps], abs=2e-3)
    assert frames[0].image.shape == (options.get("height", 48), options.get("width", 64), 3)


def test_av1_goes_to_pyav(write_video: Any) -> None:
    path = str(write_video("av1.mp4", codec="libsvtav1", options={"preset": "12"}))
    decoder = open_decoder(path, "decord")
    assert decoder.name == "pyav"
    assert decord_doubt(decoder.timeline) == "the codec is av1"
    assert [image.mean() for image in _images(decoder, [0, 19])] == pytest.approx([0, 152], abs=3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("owner", ["file", "stream"])
def test_metadata_that_is_no_utf8_costs_nothing(
    real_videos: dict[str, Path], tmp_path: Path, owner: str, suffix: str
) -> None:
    path = tmp_path / f"titled.{suffix}"
    with av.open(str(real_videos["bikes"])) as given, av.open(str(path), "w") as container:
        stream: Any = container.add_stream_from_template(given.streams.video[0])
        metadata = container.metadata if owner == "file" else stream.metadata
        metadata.update({"title": "TITLE", "handler_name": "TITLE"})
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    titled = path.read_bytes()
    assert b"TITLE" in titled
    path.write_bytes(titled.replace(b"TITLE", b"\xe9t\xe9\xff\xfe"))
    (expected,) = _images(PyAVDecoder(str(real_videos["bikes"])), [10])
    for choice in ("auto", "pyav"):
        (actual,) = _images(open_decoder(str(path), choice), [10])
        np.testing.assert_array_equal(actual, expected)


def test_only_who_chooses_decord_needs_it(write_video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    path = str(write_video("a.mp4"))
    assert open_decoder(path).name == "pyav"
    with pytest.raises(UnreadableVideoError, match="decord cannot be loaded"):
        open_decoder(path, "decord")


def test_a_file_that_was_cut_off_is_refused(real_videos: dict[str, Path], remux: Any) -> None:
    path = remux(real_videos["bikes"], "whole.mp4", index_in_front=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(UnreadableVideoError, match=r"cut off: it holds \d+ of 250 frames"):
        open_decoder(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n" * 100, b"#EXTM3U\n#EXTINF:9,\n/etc/hostname\n", b"ffconcat version 1.0\nfile /etc/hostname\n"],
)
def test_other_files_and_playlists_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableVideoError) as failure:
        open_decoder(str(path))
    assert "\n" not in str(failure.value)


def test_frames_larger_than_the_limit_are_refused_before_decoding(
    write_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_video("a.mp4"))
    monkeypatch.setattr("pipelines.video.containers.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(UnreadableVideoError, match="64×48 pixels are larger"):
        open_decoder(path)


def test_asking_beyond_the_end_tells_the_true_number_of_frames(write_video: Any) -> None:
    decoder = PyAVDecoder(str(write_video("a.mp4")))
    with pytest.raises(FrameCountError) as failure:
        list(decoder.frames([3, 25]))
    assert failure.value.num_frames == 20
