"""What an upload takes is what an index takes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.datasets.video_files import VIDEO_SUFFIXES
from pipelines.serve.uploads import looks_like_video
from pipelines.video.decoders import PyAVDecoder
from tests.pipelines.video.numbered_videos import number_of, write_numbered

TIMES_S = [number / 25 for number in range(10)]
CODECS: Mapping[str, str] = {
    "webm": "libvpx",
    "ogv": "libvpx",
    "flv": "flv",
    "avi": "mpeg4",
    **dict.fromkeys(("wmv", "asf"), "wmv2"),
    **dict.fromkeys(("mpg", "mpeg"), "mpeg2video"),
}
FORMS = {"m2ts": "mpegts", "qt": "mov", "ogv": "ogg", "asf": "asf"}


@pytest.mark.parametrize("suffix", sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
def test_a_file_of_every_suffix_looks_like_a_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    codec, form = CODECS.get(suffix, "libx264"), FORMS.get(suffix)
    write_numbered(path, TIMES_S, codec=codec, fps=25, unit=Fraction(1, 25), form=form)
    _is_taken(path.read_bytes())


def test_recordings_of_camcorders_and_pieces_of_streams_are_taken(tmp_path: Path) -> None:
    options = {"mpegts_m2ts_mode": "1"}
    camcorder = write_numbered(tmp_path / "a.mts", TIMES_S, fps=25, form="mpegts", container_options=options)
    assert camcorder.read_bytes()[4:197:192] == b"GG"
    _is_taken(camcorder.read_bytes())
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    piece = write_numbered(tmp_path / "a.mp4", TIMES_S, fps=25, container_options=fragments).read_bytes()
    _is_taken(struct.pack(">I", 16) + b"stypmsdh" + bytes(4) + piece)


@pytest.mark.parametrize("content", [b"", b"G", b"GIF", b"Good morning\n" * 100, b"{}", b"\x7fELF" + bytes(400)])
def test_other_files_are_not(content: bytes) -> None:
    assert not looks_like_video(content)


def _is_taken(content: bytes) -> None:
    assert looks_like_video(content)
    decoder = PyAVDecoder(content)
    assert [number_of(frame.image) for frame in decoder.frames([0, 9])] == [0, 9]
    decoder.close()
