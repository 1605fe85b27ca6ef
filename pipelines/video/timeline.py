"""When a file shows its frames, read from the headers of its packets; nothing is decoded.

Times are presentation times of the file in seconds after the first frame that it can show. Frames before
the first key frame cannot be decoded, and frames that an edit list cuts off are not shown: neither counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from pipelines.video.containers import format_name, moving_streams
from pipelines.video.errors import UnreadableVideoError
from pipelines.video.key_frames import holds_joined_units, holds_no_picture, is_clean_start, is_instant_refresh

_SEEKABLE = frozenset({"mov", "matroska", "flv"})
"""Formats in which seeking to the time of a key frame works, by the first of their FFmpeg names. Every seek is
checked."""

_MAX_REORDERING = 32
"""By how many frames the order of showing may differ from the order in the file: codecs hold 16 pictures, or 32
fields."""

_MAX_STEP_S = 10.0
"""Seconds. In a file whose times go back somewhere, a longer step between packets is not a pause but another clock."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a video that a user may want to know; its frames are usable. ``reason`` is one word."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class KeyFrame:
    """A frame from which decoding can start: ``ordinal`` counts packets in the order of the file."""

    pts: int
    dts: int | None
    ordinal: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the packets of a stream say.

    Attributes:
        times_s: when each frame is shown, increasing, from 0.
        end_s: when the last one ends.
        begin_s: how long the file has played, sound or frames that cannot be decoded, when the first one is shown.
        rate: frames per second if it is constant: no frame is more than half a frame away from its place.
        pts: presentation times in the file's units where each frame has its own; otherwise frames are counted.
        keys: where seeking can go; empty where the format cannot seek.
        ordinals: which packet has a presentation time.
        skips: packets before the first one that can be shown.
        edited: an edit list hides packets.
        only_instant: every key frame is an instant refresh, with nothing before it needed after it.
        pictures: packets that hold a picture, where they were counted: always in a transport stream.
        all_pictures: every packet holds a picture, or they were not counted.
        joined: some packets begin with an access unit that holds no picture, and their picture has its time.
    """

    container: str
    codec: str
    times_s: Sequence[float]
    end_s: float
    begin_s: float
    rate: float | None
    pts: Sequence[int] | None
    keys: Sequence[KeyFrame]
    ordinals: dict[int, int]
    skips: int
    edited: bool
    only_instant: bool
    pictures: int
    all_pictures: bool
    joined: bool
    notes: tuple[Note, ...]

    @property
    def fps(self) -> float:
        """Average frames per second, such that all frames together last until ``end_s``."""
        # Where end_s was computed from the rate, the rate itself: a quotient would differ from it by rounding.
        count = len(self.times_s)
        return self.rate if self.rate and self.end_s == count / self.rate else count / self.end_s

    def delayed(self, frames: int) -> Timeline:
        """The timeline in which each frame is shown at the time of the packet ``frames`` places later."""
        if not frames or len(self.times_s) <= frames:
            return self
        times, step_s = np.asarray(self.times_s), self.end_s - self.times_s[-1]
        late = times[-1] + step_s * np.arange(1, frames + 1)
        return replace(self, times_s=(np.concatenate([times[frames:], late]) - times[frames]).tolist())


@dataclass(frozen=True, slots=True)
class _Packet:
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_hidden: bool
    """By an edit list."""


def read_timeline(container: Any, stream: Any, *, trust_pts: bool = True, counts_pictures: bool = False) -> Timeline:
    """Reads all packets of ``stream``, which ``container`` has just opened.

    Args:
        container: the open file.
        stream: the video stream.
        trust_pts: whether the presentation times, where there are any, are those of the decoded frames.
        counts_pictures: whether to look into every packet of H.264 and HEVC, which takes time; transport streams need
            it.

    Raises:
        UnreadableVideoError: the file is cut off, or there is nothing to show.
    """
    codec, extradata = stream.codec.canonical_name, stream.codec_context.extradata
    name, packets = format_name(container), list[_Packet]()
    clean: list[int] = []
    whole, only_instant = 0, True
    pictures, joined = 0, False
    in_units = codec in ("h264", "hevc")
    counts_pictures = in_units and (counts_pictures or name == "mpegts")
    for packet in container.demux(stream):
        # The last packet of PyAV: it has the decoder give out what it holds back.
        if packet.size == 0:
            continue
        # FFmpeg marks the packet inside of which a file ends.
        whole += not packet.is_corrupt
        if packet.is_keyframe and name in _SEEKABLE:
            content = bytes(packet) if in_units else b""
            if is_clean_start(codec, content, extradata):
                clean.append(len(packets))
            only_instant = only_instant and is_instant_refresh(codec, content, extradata)
        is_key = packet.is_keyframe
        if counts_pictures:
            pictures += not holds_no_picture(codec, bytes(packet), extradata)
        if name == "mpegts" and in_units:
            content = bytes(packet)
            joined = joined or holds_joined_units(codec, content)
            # Packets as they are stored are not marked.
            is_key = is_key or is_clean_start(codec, content, None)
        packets.append(_Packet(packet.pts, packet.dts, packet.duration or 0, is_key, packet.is_discard))
    announced = min(stream.frames, len(stream.index_entries))
    # 0 = the format announces none. An AVI announces slots, and some of these may be empty.
    if whole < announced and name != "avi":
        raise UnreadableVideoError(f"the file is cut off: it holds {whole} of {announced} frames")
    first = next((ordinal for ordinal, packet in enumerate(packets) if packet.is_key), 0)
    shown = [packet for packet in packets[first:] if not packet.is_hidden]
    notes = _stream_notes(container, stream)
    if first:
        notes.append(Note("late_start", f"{first} frames before the first key frame cannot be shown"))
    # What is stored behind the first key frame and shown before it refers to packets that are missing.
    if packets and first and (start := packets[first].pts) is not None:
        shown = [packet for packet in shown if packet.pts is None or packet.pts >= start]
    if not shown:
        raise UnreadableVideoError("the video stream has no frames")
    pts = _presentation_times(shown, name, codec) if trust_pts else None
    if pts is None:
        notes.append(Note("counted", "the file has no dependable presentation times: frames are counted as they come"))
    ticks = pts or _slots(shown, float(stream.time_base))
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if ticks is None:
        if not rates:
            raise UnreadableVideoError("the stream has neither times nor a frame rate")
        times_s = [number / rates[0] for number in range(len(shown))]
        last_s = 1 / rates[0]
    else:
        # As exact as fractions, and many times faster.
        numerator, denominator = stream.time_base.numerator, stream.time_base.denominator
        times_s = [(tick - ticks[0]) * numerator / denominator for tick in ticks]
        last = max(shown, key=lambda packet: packet.pts or 0) if pts else shown[-1]
        last_s = float(last.duration * stream.time_base)
    rate = constant_rate(times_s, rates)
    if rate is None and last_s <= 0:
        # There are two frames or more: of a single one, the rate is known.
        last_s = median(later - earlier for earlier, later in pairwise(times_s))
    # At a constant rate only a picture that stays for longer, as at the end of a GIF, counts with its own time.
    end_s = len(times_s) / rate if rate and last_s * rate < 1.5 else times_s[-1] + last_s
    # In the order of time as well as of the file, for bisection.
    keys: list[KeyFrame] = []
    for ordinal in clean if pts else []:
        packet = packets[ordinal]
        if packet.pts is not None and (not keys or packet.pts > keys[-1].pts):
            keys.append(KeyFrame(packet.pts, packet.dts, ordinal))
    return Timeline(
        container=name,
        codec=codec,
        times_s=times_s,
        end_s=end_s,
        begin_s=_begin_s(container, stream, packets, pts),
        rate=rate,
        pts=pts,
        keys=keys,
        ordinals={packet.pts: ordinal for ordinal, packet in enumerate(packets) if packet.pts is not None},
        skips=first,
        edited=any(packet.is_hidden for packet in packets),
        only_instant=only_instant,
        pictures=pictures,
        all_pictures=not counts_pictures or pictures == len(packets),
        joined=joined,
        notes=tuple(notes),
    )


def constant_rate(times_s: Sequence[float], rates: Sequence[float]) -> float | None:
    """The first of ``rates``, or the mean rate, by which no frame is more than half a frame off its place."""
    places = np.arange(len(times_s))
    measured = [(len(times_s) - 1) / times_s[-1]] if len(times_s) > 1 else [] if rates else [1.0]
    times = np.asarray(times_s)
    # The file's own rates come first: they are exact, while times are rounded to its unit.
    return next((rate for rate in [*rates, *measured] if np.abs(times * rate - places).max() <= 0.5), None)


def _presentation_times(shown: Sequence[_Packet], container: str, codec: str) -> list[int] | None:
    """The times in order, if every frame has its own and they are near the order of the file."""
    if container == "avi" and codec in ("h264", "hevc"):
        # An AVI holds no presentation times, and FFmpeg makes some up that ignore the order of the pictures.
        return None
    found = [packet.pts for packet in shown if packet.pts is not None]
    # Packets without a time make it fewer, too.
    if len(set(found)) < len(shown):
        return None
    # Where each packet belongs by its time: files that were joined without a common clock go back.
    places = np.empty(len(found), dtype=np.int64)
    places[np.argsort(found)] = np.arange(len(found))
    return sorted(found) if np.abs(places - np.arange(len(found))).max() <= _MAX_REORDERING else None


def _slots(shown: Sequence[_Packet], unit_s: float) -> list[int] | None:
    """Places in time of packets that come in order: their decoding times, mended where these go back."""
    times = [packet.dts if packet.dts is not None else packet.pts for packet in shown]
    if any(time is None for time in times):
        return None
    steps = np.diff(np.asarray(times, dtype=np.int64))
    good = steps[steps > 0]
    if not len(good):
        return None
    if np.any(steps <= 0):
        steps[(steps <= 0) | (steps > round(_MAX_STEP_S / unit_s))] = int(np.median(good))
    return [0, *np.cumsum(steps).tolist()]


def _begin_s(container: Any, stream: Any, packets: Sequence[_Packet], pts: Sequence[int] | None) -> float:
    """Seconds from the start of the file's sound or pictures to the first frame that is shown."""
    if pts is None:
        return 0.0
    # With frames that cannot be decoded, since the clock of a player runs meanwhile.
    seen = min(packet.pts for packet in packets if packet.pts is not None and not packet.is_hidden)
    heard = [sound.start_time * sound.time_base for sound in container.streams.audio if sound.start_time is not None]
    return float(pts[0] * stream.time_base - min(seen * stream.time_base, *heard, pts[0] * stream.time_base))


def _stream_notes(container: Any, stream: Any) -> list[Note]:
    others = len(moving_streams(container)) - 1
    if not others:
        return []
    return [Note("several_streams", f"the file has {others + 1} video streams; stream {stream.index} is taken")]
