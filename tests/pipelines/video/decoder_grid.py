"""Which decoder reads what rightly: every kind of file is written, decoded and compared with the numbers it shows.

``python -m tests.pipelines.video.decoder_grid`` prints the table of docs/decoding.md.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipelines.video.decode_child import ExtractSettings, extract
from pipelines.video.decoder import Decoder, DecoderChoice
from pipelines.video.decoders import PyAVDecoder
from pipelines.video.decord_decoder import DecordDecoder
from pipelines.video.errors import UnreadableVideoError, WrongTimesError
from pipelines.video.torchcodec_decoder import TorchcodecDecoder, torchcodec_problem
from tests.pipelines.video.numbered_videos import number_of, write_numbered

Verdict = Literal["right", "wrong", "refused"]

STREAMS: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    "H.264, closed GOP": ("libx264", {"x264-params": "keyint=12:bframes=3:scenecut=0"}, "mp4 mov mkv flv ts avi"),
    "H.264, open GOP": (
        "libx264",
        {"x264-params": "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0"},
        "mp4 mov mkv flv ts",
    ),
    "H.264, intra refresh": ("libx264", {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}, "mp4 mkv ts"),
    "H.264, B-pyramid, one key frame": (
        "libx264",
        {"x264-params": "keyint=250:bframes=8:b-pyramid=normal:b-adapt=0:ref=5"},
        "mp4 mkv ts",
    ),
    "H.264, no B-frames": ("libx264", {"g": "12", "bf": "0"}, "mp4 mkv flv ts avi"),
    "HEVC, closed GOP": ("libx265", {"x265-params": "keyint=12:min-keyint=12:open-gop=0"}, "mp4 mkv ts"),
    "HEVC, open GOP": ("libx265", {"x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=4"}, "mp4 mkv ts"),
    "MPEG-4 Part 2": ("mpeg4", {"g": "12", "bf": "0", "q": "3"}, "mp4 avi mkv"),
    "MPEG-4 Part 2, B-frames": ("mpeg4", {"g": "12", "bf": "2", "q": "3"}, "mp4 avi mkv"),
    "MPEG-2, B-frames": ("mpeg2video", {"g": "12", "bf": "2", "q": "3"}, "mpg ts mkv"),
    "VP8, hidden frames": ("libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "500k"}, "webm"),
    "VP9": ("libvpx-vp9", {"g": "12", "b": "500k", "cpu-used": "8", "deadline": "realtime"}, "webm mp4"),
    "AV1": ("libsvtav1", {"preset": "12", "g": "12"}, "mp4 webm"),
    "MJPEG": ("mjpeg", {"q": "3"}, "avi mov"),
    "WMV2": ("wmv2", {"g": "12", "q": "3"}, "wmv"),
}
"""Encoder, its options, and suffixes of the containers."""

NUM_FRAMES = 60
NTSC = Fraction(30000, 1001)
RATES: Mapping[str, tuple[Fraction | int, list[float]]] = {
    "constant": (25, [number / 25 for number in range(NUM_FRAMES)]),
    "29.97": (NTSC, [float(number / NTSC) for number in range(NUM_FRAMES)]),
    "variable": (10, [n / 10 for n in range(30)] + [3 + n / 2 for n in range(NUM_FRAMES - 30)]),
}
"""Nominal rate and the times of the frames: also ten a second for three seconds, then two a second."""

FIXED_RATE = ("mpg",)
"""Formats whose codecs know no variable rate."""

SEGMENTS = ((None, None), (1.0, 1.8), (1.5, 2.0))
TURNS = [(degrees, hflip) for degrees in (0, 90, 180, 270) for hflip in (False, True)]
"""All ways to turn and mirror a picture by quarters."""


@dataclass(frozen=True)
class Case:
    """A kind of file."""

    stream: str
    suffix: str
    rate: str

    @property
    def times_s(self) -> list[float]:
        """When each frame is shown."""
        return RATES[self.rate][1]

    def write(self, folder: Path, **changes: Any) -> Path:
        """Writes the file."""
        codec, options, _ = STREAMS[self.stream]
        if codec == "libx265":
            more = ":log-level=none:pools=1:frame-threads=1"
            options = {"x265-params": options["x265-params"] + more}
        fps = RATES[self.rate][0]
        # These formats count in frames, the others in thousandths of a second.
        by_frame = self.suffix in ("avi", "mpg") or codec in ("mpeg2video", "mjpeg")
        unit = 1 / Fraction(fps) if by_frame or self.rate == "29.97" else Fraction(1, 1000)
        name = "".join(filter(str.isalnum, f"{self.stream}{self.rate}")) + f".{self.suffix}"
        return write_numbered(folder / name, self.times_s, codec=codec, options=options, fps=fps, unit=unit, **changes)


def cases() -> Iterator[Case]:
    """Every kind of file that can be written."""
    for stream, (codec, _, suffixes) in STREAMS.items():
        for suffix in suffixes.split():
            for rate in RATES:
                if rate != "variable" or not (suffix in FIXED_RATE or codec == "mpeg2video"):
                    yield Case(stream, suffix, rate)


def by_project(path: Path, case: Case, choice: DecoderChoice) -> tuple[Verdict, str]:
    """How the project reads the file, whole and in segments, and by which decoder."""
    times = np.asarray(case.times_s)
    half_s = np.diff(times).min() / 2
    used = set()
    for start_s, end_s in SEGMENTS:
        settings = ExtractSettings(
            rate=4,
            max_frames=9,
            short_side_px=64,
            decoder=choice,
            format="png",
            jpeg_quality=90,
            start_s=start_s,
            end_s=end_s,
        )
        try:
            video = extract(str(path), settings)
        except UnreadableVideoError:
            return "refused", choice
        used.add(video.decoder)
        shown = [
            times[min(number_of(np.asarray(Image.open(io.BytesIO(image)))), len(times) - 1)] for image in video.images
        ]
        inside = [time for time in shown if (start_s or 0) - half_s <= time < (end_s or times[-1] + 1) + half_s]
        wanted = min(9, 4 * ((end_s or times[-1]) - (start_s or 0)))
        # At two frames a second there are half as many.
        enough = len(inside) == len(shown) >= 0.4 * wanted
        if not enough or np.abs(np.subtract(video.time_s, shown)).max() > half_s:
            return "wrong", video.decoder
    return "right", "+".join(sorted(used))


def by_decord(path: Path) -> Verdict:
    """How decord alone reads the frames that the project would ask it for, in order and with leaps."""
    return _alone(path, lambda pyav: DecordDecoder(str(path), pyav.timeline))


def by_torchcodec(path: Path) -> Verdict:
    """The same for torchcodec."""
    return _alone(path, lambda pyav: TorchcodecDecoder(str(path), pyav.timeline, pyav.place()))


def _alone(path: Path, opened: Callable[[PyAVDecoder], Decoder]) -> Verdict:
    try:
        pyav = PyAVDecoder(str(path))
        try:
            for indices in ((0, 20, 40, 59), (25, 31, 57), (13,)):
                if [number_of(frame.image) for frame in opened(pyav).frames(indices)] != list(indices):
                    return "wrong"
        finally:
            pyav.close()
    except WrongTimesError:
        return "wrong"
    except UnreadableVideoError:
        return "refused"
    return "right"


def main() -> None:
    """Prints the table; containers and rates that are read alike share a row."""
    if problem := torchcodec_problem():
        raise SystemExit(problem)
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            path = case.write(Path(folder))
            auto, _ = by_project(path, case, "auto")
            chosen, used = by_project(path, case, "decord")
            other, by = by_project(path, case, "torchcodec")
            outcome = (case.stream, auto, f"{chosen}, by {used}", by_decord(path))
            outcome = (*outcome, f"{other}, by {by}", by_torchcodec(path))
            rows.setdefault(outcome, {}).setdefault(case.suffix, []).append(case.rate)
            path.unlink()
    names = ["stream", "containers", "rates", "`auto`", "`decord`", "decord alone", "`torchcodec`", "torchcodec alone"]
    print(f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|")
    for (stream, *verdicts), rates_of in rows.items():
        alike: dict[str, list[str]] = {}
        for suffix, rates in rates_of.items():
            alike.setdefault("all" if len(rates) == len(RATES) else ", ".join(rates), []).append(suffix)
        for rates_read, suffixes in alike.items():
            print(f"| {' | '.join((stream, ', '.join(suffixes), rates_read, *verdicts))} |")


if __name__ == "__main__":
    main()
