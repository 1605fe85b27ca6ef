"""torchcodec and NVDEC read what PyAV reads; where they are missing or may be wrong, PyAV takes over."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.video.decode_child import ExtractSettings, extract
from pipelines.video.decode_process import DecodeProcess
from pipelines.video.decoders import PyAVDecoder, open_decoder
from pipelines.video.errors import UnreadableVideoError, WrongTimesError
from pipelines.video.torchcodec_decoder import TorchcodecDecoder, nvdec_problem, torchcodec_problem
from tests.pipelines.video.decoder_grid import RATES, STREAMS, by_project, by_torchcodec, cases
from tests.pipelines.video.numbered_videos import write_numbered

needs_torchcodec = pytest.mark.skipif(torchcodec_problem() is not None, reason=torchcodec_problem() or "")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEADY = [number / 10 for number in range(60)]
SETTINGS = ExtractSettings(rate=2, max_frames=12, short_side_px=64, decoder="torchcodec", format="png", jpeg_quality=90)


@pytest.fixture
def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    _forget()
    yield
    _forget()


def _forget() -> None:
    torchcodec_problem.cache_clear()
    nvdec_problem.cache_clear()


@pytest.mark.parametrize("decoder", ["torchcodec", "nvdec"])
def test_where_it_is_missing_pyav_reads_and_the_reason_is_noted(
    decoder: Any, tmp_path: Path, without_torchcodec: Any
) -> None:
    path = write_numbered(tmp_path / "a.mp4", STEADY)
    video = extract(str(path), replace(SETTINGS, decoder=decoder))
    assert (video.decoder, len(video.images)) == ("pyav", 12)
    assert (video.notes or "").startswith(f"not_{decoder}: read by PyAV, since torchcodec is not installed")
    assert "pip install 'hbi-on-ray[torchcodec]'" in (video.notes or "")


@pytest.mark.parametrize("decoder", ["torchcodec", "nvdec"])
def test_what_it_cannot_open_pyav_reads(decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, *_: object, name: str) -> None:
            raise UnreadableVideoError(f"no {name} today")

    monkeypatch.setattr("pipelines.video.decoders.load_decoder", lambda _: None)
    monkeypatch.setattr("pipelines.video.decoders.TorchcodecDecoder", Refusing)
    path = write_numbered(tmp_path / "a.mp4", STEADY)
    video = extract(str(path), replace(SETTINGS, decoder=decoder))
    assert (video.decoder, video.time_s) == ("pyav", extract(str(path), replace(SETTINGS, decoder="pyav")).time_s)
    assert video.notes == f"not_{decoder}: read by PyAV, since {decoder} says: no {decoder} today"


@needs_torchcodec
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_decoding_process_reads_by_pyav(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", STEADY)
    process = DecodeProcess(timeout_s=60, max_memory_gb=1, decoder="nvdec")
    video = process.extract(str(path), replace(SETTINGS, decoder="nvdec"))
    process.close()
    assert video.decoder == "pyav"
    assert (video.notes or "").startswith("not_nvdec: read by PyAV, since no GPU can be used: ")


@needs_torchcodec
@needs_gpu
def test_frames_of_a_gpu_are_those_of_pyav_but_for_rounding_of_colours(real_videos: dict[str, Path]) -> None:
    process = DecodeProcess(timeout_s=60, max_memory_gb=4, decoder="nvdec")
    for path in real_videos.values():
        video = process.extract(str(path), replace(SETTINGS, decoder="nvdec"))
        expected = extract(str(path), replace(SETTINGS, decoder="pyav"))
        assert (video.decoder, video.frame_index, video.time_s) == ("nvdec", expected.frame_index, expected.time_s)
        for mine, theirs in zip(video.images, expected.images, strict=True):
            difference = np.abs(pixels(mine) - pixels(theirs))
            # The GPU converts colours in a way of its own.
            assert difference.mean() <= 3 and np.median(difference) <= 2, path
    process.close()


def pixels(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image))).astype(int)


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
