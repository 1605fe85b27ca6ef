"""When files show their frames: kinds of files whose times are not one rate from zero."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.video.decode_child import ExtractedVideo, ExtractSettings, NoFramesError, extract
from pipelines.video.decoders import PyAVDecoder
from pipelines.video.errors import UnreadableVideoError
from pipelines.video.orientation import quarter_turns
from pipelines.video.sampling import sample_frames, sample_times
from tests.pipelines.video.numbered_videos import encoded, number_of, picture, write_numbered

STEADY = [number / 10 for number in range(60)]


def read(
    path: Path,
    *,
    rate: float = 2,
    start_s: float | None = None,
    end_s: float | None = None,
    decoder: Any = "auto",
    max_frames: int = 12,
) -> ExtractedVideo:
    """What the stage stores of a file."""
    settings = ExtractSettings(
        rate=rate,
        max_frames=max_frames,
        short_side_px=64,
        decoder=decoder,
        format="png",
        jpeg_quality=90,
        start_s=start_s,
        end_s=end_s,
    )
    return extract(str(path), settings)


def numbers(video: ExtractedVideo) -> list[int]:
    """The numbers that the stored frames show."""
    return [number_of(np.asarray(Image.open(io.BytesIO(image)))) for image in video.images]


def reasons(video: ExtractedVideo) -> list[str]:
    """Of the notes."""
    return [line.partition(": ")[0] for line in (video.notes or "").splitlines()]


@pytest.mark.parametrize("bframes", [0, 2])
def test_what_comes_before_the_first_key_frame_is_left_out(tmp_path: Path, bframes: int) -> None:
    path = write_numbered(
        tmp_path / "a.ts",
        STEADY,
        options={"x264-params": f"keyint=20:min-keyint=20:scenecut=0:bframes={bframes}"},
        change=lambda number, packet: packet if number >= 5 else None,
    )
    video = read(path)
    assert numbers(video) == [20, 25, 30, 35, 40, 45, 50, 55]
    assert video.time_s == pytest.approx([number / 10 - 2 for number in numbers(video)], abs=1e-3)
    assert reasons(video) == ["late_start"]
    # The segment is on the file's clock, which runs from its first packet.
    assert min(numbers(read(path, rate=10, start_s=2.4, end_s=3.0))) >= 24


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mts"])
def test_a_packet_without_a_picture_holds_its_place_in_time(tmp_path: Path, suffix: str) -> None:
    def skip(number: int, packet: Any) -> Any:
        if number % 3 != 2:
            return packet
        filler = av.Packet(b"\x00\x00\x00\x01\x0c\xff\xff\x80")
        filler.pts, filler.dts, filler.time_base = packet.pts, packet.dts, packet.time_base
        return filler

    video = read(write_numbered(tmp_path / f"a.{suffix}", STEADY, options={"g": "1"}, change=skip))
    # Frames 5, 20, 35 and 50 were skipped: the picture before stays.
    assert numbers(video) == [0, 4, 10, 15, 19, 25, 30, 34, 40, 45, 49, 55]
    assert video.time_s == pytest.approx([number / 10 for number in numbers(video)], abs=1e-3)
    assert reasons(video) == ["no_picture"]


FILLERS = {"libx264": b"\x00\x00\x00\x01\x0c\xff\xff\x80", "libx265": b"\x00\x00\x00\x01\x4c\x01\xff\xff\x80"}
"""An access unit that holds filler data alone."""

REORDERED = {
    "H.264": ("libx264", {"x264-params": "keyint=20:bframes=2:b-pyramid=none:b-adapt=0:scenecut=0"}),
    "H.264, B-pyramid": ("libx264", {"x264-params": "keyint=20:bframes=5:b-pyramid=normal:b-adapt=0:scenecut=0"}),
    "H.264, open GOP": ("libx264", {"x264-params": "keyint=20:min-keyint=20:bframes=3:open-gop=1:scenecut=0"}),
    "HEVC": ("libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20:bframes=2:open-gop=0:pools=1"}),
}


def write_with_fillers(path: Path, codec: str, options: Any) -> Path:
    """Ten packets a second, each third of which holds no picture: picture n is in the packet n // 2 * 3 + n % 2."""
    unit, shown = Fraction(1, 1000), [time_s for number, time_s in enumerate(STEADY) if number % 3 != 2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1
        packets = [packet for packet in encoded(stream, shown, size=(96, 64), unit=unit) if packet.size]
        for number in range(2, len(STEADY), 3):
            filler = av.Packet(FILLERS[codec])
            filler.pts, filler.dts, filler.time_base = 100 * number, 100 * number, unit
            packets.append(filler)
        # Before pictures that are decoded at the same time: they are shown later.
        for packet in sorted(packets, key=lambda packet: (packet.dts, packet.size)):
            packet.stream = stream
            container.mux(packet)
    return path


@pytest.mark.parametrize("bframes", [1, 2])
def test_slots_of_an_avi_that_begins_without_a_key_frame_stay_those_of_its_pictures(
    tmp_path: Path, bframes: int
) -> None:
    # Ten slots a second; from frame 40 on each third of them is empty.
    times = [number / 10 for number in range(100) if number < 40 or number % 3]
    path = write_numbered(
        tmp_path / "a.avi",
        times,
        options={"x264-params": f"keyint=20:min-keyint=20:scenecut=0:bframes={bframes}:b-adapt=0"},
        unit=Fraction(1, 10),
        change=lambda number, packet: packet if number >= 5 else None,
    )
    video = read(path, rate=10, max_frames=100)
    assert numbers(video)[0] == 20
    # The last ones are held back beyond the last slot.
    expected = [times[number] - times[20] for number in numbers(video)]
    assert video.time_s[:-bframes] == pytest.approx(expected[:-bframes], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"),
    # FLV holds no HEVC.
    [
        (kind, suffix)
        for kind, (codec, _) in REORDERED.items()
        for suffix in ("mp4", "mkv", "flv", "ts", "mts")
        if (codec, suffix) != ("libx265", "flv")
    ],
)
def test_packets_without_a_picture_among_pictures_that_are_reordered(tmp_path: Path, kind: str, suffix: str) -> None:
    codec, options = REORDERED[kind]
    path = write_with_fillers(tmp_path / f"a.{suffix}", codec, options)
    # In place of a missing picture the one before it, whether that was wanted itself or is skipped on the way.
    on_screen = [2 * (number // 3) + min(number % 3, 1) for number in range(60)]
    for decoder, rate, start, stop in (
        ("auto", 10, 0, 60),
        ("auto", 2, 0, 60),
        ("auto", 5, 40, 55),
        ("decord", 2, 22, 60),
    ):
        video = read(path, rate=rate, start_s=start / 10, end_s=stop / 10, decoder=decoder, max_frames=60)
        wanted = on_screen[start : stop : 10 // rate]
        assert numbers(video) == list(dict.fromkeys(wanted)), (decoder, rate, start)
        times_s = [number // 2 * 0.3 + number % 2 / 10 for number in numbers(video)]
        assert video.time_s == pytest.approx(times_s, abs=2e-3)
        assert (video.decoder, reasons(video)[-1]) == ("pyav", "no_picture")


def test_an_encrypted_video_is_refused_in_words(tmp_path: Path) -> None:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "ab" * 16}
    path = write_numbered(tmp_path / "a.mp4", STEADY, container_options=key)
    with pytest.raises(UnreadableVideoError, match=r"^the video is encrypted$"):
        read(path)


def test_segments_are_on_the_clock_of_the_file_and_frames_on_that_of_the_pictures(tmp_path: Path) -> None:
    def sound(container: Any) -> Callable[[], None]:
        stream = container.add_stream("aac", rate=16_000)

        def finish() -> None:
            for second in range(8):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16_000, 16_000 * second, Fraction(1, 16_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

        return finish

    path = write_numbered(tmp_path / "a.mp4", STEADY, before=sound, begin_s=2.0)
    video = read(path, start_s=4.0, end_s=6.0)
    assert numbers(video) == [20, 25, 30, 35]
    assert video.time_s == pytest.approx([2.0, 2.5, 3.0, 3.5])
    assert video.source_begin_s == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(NoFramesError, match=r"60 frames, 6\.00 s from 2\.00 s on"):
        read(path, start_s=0.5, end_s=1.5)
    # Without sound the pictures begin the file, whatever its first time is.
    late = write_numbered(tmp_path / "a.mkv", STEADY, begin_s=100.0)
    assert numbers(read(late, start_s=4.0, end_s=6.0)) == [40, 45, 50, 55]


def _another(size: tuple[int, int], is_default: bool) -> Callable[[Any], Callable[[], None]]:
    def before(container: Any) -> Callable[[], None]:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        kinds = av.stream.Disposition
        stream.disposition = kinds.default if is_default else kinds(0)
        # All its pictures show 0.
        return lambda: [container.mux(packet) for packet in encoded(stream, [0.0], size=size, unit=Fraction(1, 1000))]

    return before


@pytest.mark.parametrize(
    ("size", "other_is_default", "is_default"),
    [((192, 128), False, True), ((48, 32), True, True)],
)
def test_of_several_streams_the_default_and_then_the_largest_is_taken(
    tmp_path: Path, size: tuple[int, int], other_is_default: bool, is_default: bool
) -> None:
    path = write_numbered(tmp_path / "a.mkv", STEADY, before=_another(size, other_is_default), is_default=is_default)
    video = read(path)
    assert numbers(video) == list(range(0, 60, 5))
    assert (video.notes or "") == "several_streams: the file has 2 video streams; stream 1 is taken"


@pytest.mark.slow
def test_a_size_that_changes_midway(tmp_path: Path) -> None:
    path, unit = tmp_path / "a.mkv", Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 96, 64, "yuv420p", unit
        for part, size in enumerate(((96, 64), (192, 128))):
            encoder: Any = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
            encoder.time_base, encoder.framerate = unit, Fraction(10)
            for number in range(30 * part, 30 * part + 30):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
                frame.pts, frame.time_base = 100 * number, unit
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    video = read(path)
    assert numbers(video) == list(range(0, 60, 5))
    assert (video.width_px, video.height_px) == (96, 64)


def test_files_that_were_joined_without_a_common_clock_are_counted(tmp_path: Path) -> None:
    parts = [write_numbered(tmp_path / f"{part}.ts", STEADY, options={"g": "20", "bf": "2"}) for part in "ab"]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = read(joined, rate=1)
    assert numbers(video) == [0, 10, 20, 30, 40, 50] * 2
    assert video.time_s == pytest.approx(list(range(12)), abs=0.05)
    assert reasons(video) == ["counted"]


@pytest.mark.parametrize(
    ("suffix", "decoder", "noted"),
    [("mkv", "auto", ["counted", "wrong_times"]), ("ts", "decord", ["counted", "not_decord", "wrong_times"])],
)
def test_times_that_the_pictures_do_not_keep_are_noticed_and_counted(
    tmp_path: Path, suffix: str, decoder: str, noted: list[str]
) -> None:
    """Packets with the times of their order in the file, though the pictures come in another."""

    def renumber(number: int, packet: Any) -> Any:
        packet.pts = packet.dts = 100 * number
        return packet

    path = write_numbered(tmp_path / f"a.{suffix}", STEADY, options={"g": "60", "bf": "3"}, change=renumber)
    video = read(path, decoder=decoder)
    assert numbers(video) == list(range(0, 60, 5))
    assert video.time_s == pytest.approx([number / 10 for number in numbers(video)], abs=0.05)
    assert reasons(video) == noted


@pytest.mark.parametrize("fragmented", [False, True])
def test_a_picture_that_stays_is_what_a_segment_inside_of_it_shows(tmp_path: Path, fragmented: bool) -> None:
    """Slides: frames at 0, 10 and 20 s, and then ten a second."""
    times = [0.0, 10.0, 20.0] + [20 + number / 10 for number in range(1, 30)]
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if fragmented else {}
    path = write_numbered(tmp_path / "a.mp4", times, options={"g": "5", "bf": "2"}, container_options=fragments)
    for segment, expected in (
        ((13, 17), [1]),
        ((0, 20), [0, 1]),
        ((9, 21.5), [1, 2, 7, 12]),
        ((21, 60), [12, 17, 22, 27]),
    ):
        assert numbers(read(path, start_s=segment[0], end_s=segment[1])) == expected
    with pytest.raises(NoFramesError, match=r"32 frames, 23\.00 s"):
        read(path, start_s=23.5, end_s=30)


def test_the_last_picture_of_a_gif_lasts_as_long_as_it_says(tmp_path: Path) -> None:
    images = [Image.fromarray(picture(number)) for number in range(4)]
    path = tmp_path / "a.gif"
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=[100, 100, 100, 3000])
    video = read(path, rate=10)
    assert video.time_s == pytest.approx([0, 0.1, 0.2, 0.3])
    assert video.source_frames / video.source_fps == pytest.approx(3.3)
    assert numbers(read(path, start_s=2, end_s=3)) == [3]


def test_what_a_seek_brings_is_what_reading_on_brings(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0"}
    path = write_numbered(tmp_path / "a.mkv", [number / 10 for number in range(240)], options=options)
    decoder = PyAVDecoder(str(path))
    assert len(decoder.timeline.keys) > 10
    everything = {frame.index: frame.image for frame in decoder.frames(range(240))}
    for indices in ([5, 100, 101, 230], [239], [12, 24, 36], [11, 23, 35]):
        for frame in decoder.frames(indices):
            assert number_of(frame.image) == frame.index
            np.testing.assert_array_equal(frame.image, everything[frame.index])
    decoder.close()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "flv"])
def test_a_seek_arrives_at_its_key_frame_and_not_at_the_one_before(tmp_path: Path, suffix: str) -> None:
    """All that lies between is decoded for nothing."""
    path = write_numbered(tmp_path / f"a.{suffix}", STEADY, options={"x264-params": "keyint=12:bframes=3:scenecut=0"})
    decoder = PyAVDecoder(str(path))
    assert [key.ordinal for key in decoder.timeline.keys] == [0, 12, 24, 36, 48]
    for key in decoder.timeline.keys:
        assert decoder._seek(key)
        assert decoder._ordinal == key.ordinal
    decoder.close()


def test_times_at_a_constant_rate_are_sampled_as_frames_are() -> None:
    for fps in (25.0, 30000 / 1001, 0.5):
        # Times in a file are rounded to its unit.
        times = [round(number / fps, 3) for number in range(500)]
        for start_s, end_s in ((None, None), (3.0, 9.5), (2.0, None)):
            segment: dict[str, Any] = {"start_s": start_s, "end_s": end_s, "rate": 1, "max_frames": 12}
            expected = sample_frames(fps=fps, num_frames=500, **segment)
            assert sample_times(times, shown_s=500 / fps, constant_fps=fps, **segment) == expected


def test_a_display_matrix_goes_to_the_nearest_quarter_turn() -> None:
    half, most = 1 << 15, 60_000
    assert quarter_turns([0] * 9) == (1, 0, 0, 1)
    assert quarter_turns([most, half, 0, -half, most, 0, 0, 0, 1 << 30]) == (1, 0, 0, 1)
    assert quarter_turns([half, most, 0, -most, half, 0, 0, 0, 1 << 30]) == (0, 1, -1, 0)


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx", "webm"), ("libx265", "mkv"), ("mpeg4", "avi")])
def test_packets_before_the_first_key_frame_are_not_given_to_the_decoder(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    """Decoders of some codecs refuse them, and the whole video with them."""
    options = (
        {"x265-params": "keyint=20:min-keyint=20:open-gop=1:log-level=none"} if codec == "libx265" else {"g": "20"}
    )
    path = write_numbered(
        tmp_path / f"a.{suffix}",
        STEADY,
        codec=codec,
        options=options,
        unit=Fraction(1, 10),
        change=lambda number, packet: packet if number >= 5 else None,
    )
    video = read(path)
    assert numbers(video) == [20, 25, 30, 35, 40, 45, 50, 55]
    assert reasons(video) == ["late_start"]
