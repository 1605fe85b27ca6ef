"""PyAV's decoder, and the choice between it and the others.

PyAV reads by presentation time: every frame that it returns says when it is shown, and this is compared with the time
that was asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import chain
from typing import Any

import av.error
from av.video.reformatter import VideoReformatter

from pipelines.video.containers import open_container, video_stream
from pipelines.video.decoder import Decoder, DecoderChoice, DecoderName, Frame
from pipelines.video.decord_decoder import DecordDecoder, decord_doubt
from pipelines.video.errors import FrameCountError, UnreadableVideoError, WrongTimesError, first_line, reading
from pipelines.video.key_frames import holds_no_picture
from pipelines.video.orientation import UPRIGHT, Matrix, display_matrix, upright
from pipelines.video.timeline import KeyFrame, Note, read_timeline
from pipelines.video.torchcodec_decoder import (
    StreamPlace,
    TorchcodecDecoder,
    nvdec_problem,
    torchcodec_doubt,
    torchcodec_problem,
)

_SEEK_GAIN_FRAMES = 8
"""A seek costs about as much as decoding this many frames."""

_WHOLE_FRAMES = frozenset({"mov", "matroska", "flv"})
"""Formats that hold a whole frame in each packet, never a field of it."""


def open_decoder(source: str | bytes, choice: DecoderChoice = "auto") -> Decoder:
    """Opens the file at path ``source``, or the file's bytes: with PyAV, or with another decoder if it is chosen and
    correct.

    Raises:
        UnreadableVideoError: it is not a video that the chosen decoder reads.
    """
    # Always: its timeline says whether another decoder can be trusted, and at which times frames must come.
    pyav = PyAVDecoder(source, counts_pictures=choice == "decord")
    if choice == "decord":
        doubt = decord_doubt(pyav.timeline, pyav.orientation())
        if doubt is None:
            pyav.close()
            return DecordDecoder(source, pyav.timeline)
        pyav.notes.append(Note("not_decord", f"read by PyAV, since decord returns other frames where {doubt}"))
    elif choice in ("torchcodec", "nvdec"):
        doubt = load_decoder(choice) or torchcodec_doubt(pyav.timeline, pyav.orientation())
        if doubt is None:
            try:
                decoder = TorchcodecDecoder(source, pyav.timeline, pyav.place(), name=choice)
            except UnreadableVideoError as error:
                doubt = f"{choice} says: {first_line(error)}"
            else:
                pyav.close()
                return decoder
        pyav.notes.append(Note(f"not_{choice}", f"read by PyAV, since {doubt}"))
    return pyav


def load_decoder(choice: DecoderChoice) -> str | None:
    """Loads the library of a decoder. Returns why PyAV must read in its place; None if nothing is known against it."""
    if choice == "decord":
        with suppress(ImportError, OSError):
            import_module("decord")
    if choice == "torchcodec":
        return torchcodec_problem()
    return nvdec_problem() if choice == "nvdec" else None


class PyAVDecoder:
    """FFmpeg through PyAV, one thread.

    Args:
        source: path or contents of the file.
        trust_pts: false = count frames, after frames have come out at other times than their packets said.
        counts_pictures: look into every packet of H.264 and HEVC for its picture.
    """

    name: DecoderName = "pyav"

    def __init__(self, source: str | bytes, *, trust_pts: bool = True, counts_pictures: bool = False) -> None:
        self._source, self._as_stored, self._converter = source, False, VideoReformatter()
        with reading():
            self._open()
            self.timeline = read_timeline(
                self._container, self._stream, trust_pts=trust_pts, counts_pictures=counts_pictures
            )
            if self.timeline.joined:
                self._separate(trust_pts)
            self._keys = self.timeline.keys
            self._rewind()
            # An AVI says when packets come and not when pictures are shown: a decoder that reorders holds them back.
            if self.timeline.pts is None and self.timeline.container == "avi":
                self.timeline = self.timeline.delayed(self._delay())
                self._rewind()
        self.notes: list[Note] = list(self.timeline.notes)
        # On the way to a wanted frame, frames that no other frame refers to are not decoded (H.264, 7.4.1).
        self._skips = self.timeline.codec == "h264" and self.timeline.container in _WHOLE_FRAMES

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yields the frames at ``indices``, see ``Decoder``."""
        found = self._shown(indices)
        while True:
            with reading():
                index, frame = next(found, (-1, None))
                if frame is None:
                    return
                # The frame's own conversion would set up FFmpeg's scaler for each frame, with a thread for each core.
                rgb = self._converter.reformat(frame, format="rgb24", threads=1)
                image = upright(rgb.to_ndarray(), display_matrix(frame))
            yield Frame(index, self.timeline.times_s[index], image)

    def orientation(self) -> Matrix:
        """How the first picture of the file is turned; ``UPRIGHT`` if there is none."""
        with reading():
            first = next(self._decoded([0]), None)
            self._rewind()
        return UPRIGHT if first is None else display_matrix(first[1])

    def place(self) -> StreamPlace:
        """Where other decoders find the stream, and the unit of its times."""
        return StreamPlace(self._stream.index, self._stream.time_base)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _shown(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """What is shown at the times of ``indices``: a frame and its index; none twice."""
        count = len(self.timeline.times_s)
        if indices[-1] >= count:
            raise FrameCountError(count)
        # An earlier call has read on, such as one that met the end of the stream too early.
        if self._ordinal:
            self._rewind()
        decoded = self._decoded(indices)
        # What is on screen, and what comes next, if that was decoded to know it.
        current: tuple[int, Any] | None = None
        ahead: tuple[int, Any] | None = None
        last = -1
        missing: list[int] = []
        for index in indices:
            while True:
                if self._approach(index):
                    decoded, current, ahead = self._decoded(indices), None, None
                while current is None or current[0] < index:
                    ahead = ahead or next(decoded, None)
                    if ahead is None or ahead[0] > index:
                        break
                    current, ahead = ahead, None
                # No frame comes before it: the file begins with packets that hold no picture.
                shown = current or ahead
                if (shown is not None and shown[0] == index) or not self._skips:
                    break
                # The picture that is on screen instead may be one of those that were not decoded: back, and decode all.
                self._skips = False
                self._rewind()
                self._stream.codec_context.skip_frame = "DEFAULT"
                decoded, current, ahead = self._decoded(indices), None, None
            if shown is None or shown[0] != index:
                missing.append(index)
            if shown is not None and shown[0] > last:
                last = shown[0]
                yield shown
        if last < 0:
            raise UnreadableVideoError("the stream holds no picture that can be decoded")
        # A single one at the end may be a packet without a picture; several mean that the stream ended early.
        if ahead is None and len([index for index in missing if index > last]) > 1:
            raise FrameCountError(last + 1)
        if missing:
            times = f"{len(missing)} of {len(indices)} wanted packets, the first at "
            self.notes.append(
                Note("no_picture", f"{times}{self.timeline.times_s[missing[0]]:.2f} s, hold no picture of their own")
            )

    def _decoded(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Continues to decode at the current packet: frames and their indices, which increase."""
        pts = self.timeline.pts
        if pts is None:
            yield from self._counted()
            return
        wanted = {pts[index] for index in indices}
        context, last = self._stream.codec_context, -1
        for packet in self._packets:
            # The last packet is empty: with it, the decoder gives out what it holds back.
            self._ordinal += packet.size > 0
            if self._ordinal <= self.timeline.skips:
                continue
            if self._skips:
                context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            for frame in self._pictures(packet):
                # Decoded but never shown, such as frames that an edit list hides.
                if frame.pts is not None and frame.pts < pts[0]:
                    continue
                index = -1 if frame.pts is None else bisect_right(pts, frame.pts) - 1
                if index <= last or pts[index] != frame.pts:
                    raise WrongTimesError("frames come out at other times than their packets say")
                last = index
                yield index, frame

    def _counted(self) -> Iterator[tuple[int, Any]]:
        """As ``_decoded``, by the packets that came since the first picture."""
        index, first = -1, 0
        for packet in self._packets:
            flushing = packet.size == 0
            self._ordinal += not (flushing or packet.is_discard)
            if self._ordinal <= self.timeline.skips:
                continue
            for frame in self._pictures(packet):
                first = first or self._ordinal
                # A packet without a picture still takes a place in time.
                index = index + 1 if flushing else max(index + 1, self._ordinal - first)
                if index >= len(self.timeline.times_s):
                    return
                yield index, frame

    def _pictures(self, packet: Any) -> list[Any]:
        """What a packet makes the decoder show."""
        try:
            return list(packet.decode())
        except av.error.InvalidDataError as error:
            if holds_no_picture(self.timeline.codec, bytes(packet), self._stream.codec_context.extradata):
                return []
            if packet.has_sidedata("encryption_info"):
                raise UnreadableVideoError("the video is encrypted") from error
            raise UnreadableVideoError(f"packet {self._ordinal} cannot be decoded: {first_line(error)}") from error

    def _delay(self) -> int:
        """Packets that the decoder holds back to bring pictures into their order."""
        return next((self._ordinal - self.timeline.skips - 1 for _ in self._counted()), 0)

    def _approach(self, index: int) -> bool:
        """Seeks to the last key frame before the wanted frame, if that is far ahead; returns whether it did."""
        pts, keys = self.timeline.pts, self._keys
        place = 0 if pts is None else bisect_right(keys, pts[index], key=lambda key: key.pts)
        # A key frame that lies behind is left out as well: the difference is then below 0.
        if not place or keys[place - 1].ordinal - self._ordinal <= _SEEK_GAIN_FRAMES:
            return False
        if not self._seek(keys[place - 1]):
            # From now on it reads without seeking. It begins at the start, because the failed seek may have ended
            # anywhere.
            self._keys = ()
            self._reopen()
        return True

    def _rewind(self) -> None:
        """Goes back to the first packet, by a seek if the file allows it."""
        first = next(iter(self._keys), None)
        if first is None or first.ordinal or not self._seek(first):
            self._reopen()

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _separate(self, trust_pts: bool) -> None:
        """Reads packets as they are stored, if each of these holds no more than one picture, and all of it."""
        self._as_stored = True
        self._reopen()
        stored = read_timeline(self._container, self._stream, trust_pts=trust_pts)
        if stored.pictures == self.timeline.pictures and not stored.joined:
            self.timeline = stored
        else:
            self._as_stored = False
            self._reopen()

    def _open(self) -> None:
        self._container: Any = open_container(self._source, as_stored=self._as_stored)
        self._stream = video_stream(self._container)
        self._packets: Iterator[Any] = self._container.demux(self._stream)
        self._ordinal = 0

    def _seek(self, key: KeyFrame) -> bool:
        """Goes to a key frame, or to a packet before it; returns whether it arrived there."""
        # In MP4 and MOV, FFmpeg takes the time for one of presentation; where it comes out too late, it did not.
        for time in dict.fromkeys((key.pts, key.pts if key.dts is None else key.dts)):
            try:
                self._container.seek(time, stream=self._stream)
            except av.error.FFmpegError:
                return False
            packets = self._container.demux(self._stream)
            landed = next(packets, None)
            # Packets are known by their times: keys to seek to exist only where each frame has a time of its own.
            ordinal = None if landed is None else self.timeline.ordinals.get(landed.pts)
            if ordinal is not None and ordinal <= key.ordinal:
                self._packets, self._ordinal = chain([landed], packets), ordinal
                return True
        return False
