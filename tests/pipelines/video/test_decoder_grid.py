"""No frame carries another's time: codecs × containers × kinds of GOP × rates × segments, and orientations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.video.decoders import PyAVDecoder, open_decoder
from pipelines.video.decord_decoder import decord_doubt
from tests.pipelines.video.decoder_grid import RATES, STREAMS, TURNS, Case, by_decord, by_project, cases
from tests.pipelines.video.numbered_videos import number_of, picture, write_numbered

# After an edit, one container of each stream is enough.
KINDS = [
    pytest.param(stream, suffix, marks=[[], pytest.mark.slow, pytest.mark.long][min(position, 2)])
    for stream, (_, _, suffixes) in STREAMS.items()
    for position, suffix in enumerate(suffixes.split())
]


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "suffix"), KINDS)
def test_frames_are_those_shown_at_their_times(tmp_path: Path, stream: str, suffix: str) -> None:
    mine = [case for case in cases() if (case.stream, case.suffix) == (stream, suffix)]
    assert len(mine) >= len(RATES) - 1
    for case in mine:
        path = case.write(tmp_path)
        assert by_project(path, case, "auto") == ("right", "pyav"), case
        verdict, used = by_project(path, case, "decord")
        assert verdict == "right", case
        decoder = PyAVDecoder(str(path))
        doubt = decord_doubt(decoder.timeline, decoder.orientation())
        decoder.close()
        assert ("decord" in used) == (doubt is None), (case, doubt)
        if doubt is None:
            assert by_decord(path) == "right", case


@pytest.mark.parametrize("stream", ["H.264, open GOP", "HEVC, open GOP", "H.264, intra refresh"])
def test_decord_is_still_wrong_where_it_is_not_used(tmp_path: Path, stream: str) -> None:
    """The reason for the doubt; if this fails, decord has learnt it."""
    assert by_decord(Case(stream, "mkv", "constant").write(tmp_path)) == "wrong"


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("degrees", "hflip"), TURNS)
def test_pictures_are_upright_whichever_way_they_are_stored(
    tmp_path: Path, suffix: str, degrees: int, hflip: bool
) -> None:
    path = write_numbered(
        tmp_path / f"a.{suffix}",
        [number / 10 for number in range(20)],
        options={"qp": "0"},
        degrees=degrees,
        hflip=hflip,
    )
    # The display matrix turns the picture to the left, and then mirrors what is shown.
    expected = np.rot90(picture(2), degrees // 90)
    expected = expected[:, ::-1] if hflip else expected
    for choice in ("auto", "decord"):
        decoder = open_decoder(str(path), choice)
        (frame,) = decoder.frames([2])
        decoder.close()
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(int) - expected).mean() < 3, choice
        # decord knows turns in MP4 and MOV alone, and nothing of mirrors.
        knows = choice == "decord" and not hflip and (not degrees or suffix != "mkv")
        assert decoder.name == ("decord" if knows else "pyav")


def test_the_grid_tells_pictures_apart() -> None:
    numbers = [0, 1, 5, 59, 2**12 - 1]
    assert [number_of(picture(number)) for number in numbers] == numbers
    assert [number_of(picture(number, 202, 360)) for number in numbers] == numbers
