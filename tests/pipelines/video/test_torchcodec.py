"""torchcodec: what it reads is what PyAV reads, and where it is missing or may be wrong PyAV takes over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.video.decode_child import ExtractSettings, extract
from pipelines.video.decoders import PyAVDecoder, open_decoder
from pipelines.video.errors import WrongTimesError
from pipelines.video.torchcodec_decoder import TorchcodecDecoder, torchcodec_problem
from tests.pipelines.video.decoder_grid import RATES, STREAMS, by_project, by_torchcodec, cases
from tests.pipelines.video.numbered_videos import write_numbered

needs_torchcodec = pytest.mark.skipif(torchcodec_problem() is not None, reason=torchcodec_problem() or "")
STEADY = [number / 10 for number in range(60)]
SETTINGS = ExtractSettings(rate=2, max_frames=12, short_side_px=64, decoder="torchcodec", format="png", jpeg_quality=90)


@pytest.fixture
def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    torchcodec_problem.cache_clear()
    yield
    torchcodec_problem.cache_clear()


def test_where_it_is_missing_pyav_reads_and_the_reason_is_noted(tmp_path: Path, without_torchcodec: Any) -> None:
    path = write_numbered(tmp_path / "a.mp4", STEADY)
    video = extract(str(path), SETTINGS)
    assert (video.decoder, len(video.images)) == ("pyav", 12)
    assert (video.notes or "").startswith("not_torchcodec: read by PyAV, since torchcodec is not installed")
    assert "pip install 'hbi-on-ray[torchcodec]'" in (video.notes or "")


@needs_torchcodec
@pytest.mark.parametrize("stream", list(STREAMS))
def test_frames_are_those_shown_at_their_times(tmp_path: Path, stream: str) -> None:
    suffix = STREAMS[stream][2].split()[0]
    mine = [case for case in cases() if (case.stream, case.suffix) == (stream, suffix)]
    assert len(mine) >= len(RATES) - 1
    for case in mine:
        path = case.write(tmp_path)
        verdict, used = by_project(path, case, "torchcodec")
        assert verdict == "right", case
        if used == "torchcodec":
            assert by_torchcodec(path) == "right", case


@needs_torchcodec
@pytest.mark.parametrize("source", [str, Path.read_bytes], ids=["path", "bytes"])
def test_pixels_are_those_of_pyav(real_videos: dict[str, Path], source: Any) -> None:
    for path in real_videos.values():
        pyav, other = PyAVDecoder(str(path)), open_decoder(source(path), "torchcodec")
        assert other.name == "torchcodec"
        indices = np.linspace(0, len(pyav.timeline.times_s) - 1, 5, dtype=int).tolist()
        for expected, found in zip(pyav.frames(indices), other.frames(indices), strict=True):
            assert (found.index, found.time_s) == (expected.index, expected.time_s)
            assert np.abs(found.image.astype(int) - expected.image).max() <= 2
        other.close()


@needs_torchcodec
def test_what_it_shows_at_another_time_is_noticed(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", STEADY)
    pyav = PyAVDecoder(str(path))
    decoder = TorchcodecDecoder(str(path), pyav.timeline, pyav.place())
    reader = decoder._reader

    class Late:
        def __len__(self) -> int:
            return len(reader)

        def get_frame_at(self, index: int) -> Any:
            return reader.get_frame_at(index + 1)

    decoder._reader = Late()
    with pytest.raises(WrongTimesError, match=r"torchcodec shows another frame at 0\.50 s"):
        list(decoder.frames([5]))
