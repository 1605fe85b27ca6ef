"""Clips that users upload: checked before they are decoded, and kept as frames in memory, never as files."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from pipelines.search.features import Clip

_ISO_BOXES = (
    b"ftyp",
    b"styp",
    b"moov",
    b"moof",
    b"sidx",
    b"mdat",
    b"wide",
    b"free",
    b"skip",
    b"uuid",
    b"pnot",
    b"udta",
)
"""Types of the first box of an MP4 or QuickTime file, or of a part of one."""

_SIGNATURES = (
    *(b"\x1a\x45\xdf\xa3", b"FLV", b"\x30\x26\xb2\x75", b"OggS", b"GIF8", b"DKIF", b"nut/multimedia container"),
    *(b"\x00\x00\x01", b"\x00\x00\x00\x01"),
)
"""Matroska and WebM, Flash, Windows Media, Ogg, GIF, IVF, NUT; MPEG program and elementary streams."""

_TRANSPORT_PACKETS = ((0, 188), (4, 192), (0, 204))
"""Packets of an MPEG transport stream: where the first one begins and how long each is. Camcorders put a time before
each packet, broadcasters a checksum after it."""

FORMATS = "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, WMV or Ogg"


def looks_like_video(content: bytes) -> bool:
    """Whether a file begins like one of the formats that the decoders open (mainly ``FORMATS``)."""
    return (
        content[4:8] in _ISO_BOXES
        or content.startswith(_SIGNATURES)
        or (content[:4] == b"RIFF" and content[8:11] == b"AVI")
        # The byte 0x47, "G", begins each packet; two in a row at the right distance are no chance.
        or any(content[start : start + 2 * size : size] == b"GG" for start, size in _TRANSPORT_PACKETS)
    )


@dataclass(frozen=True)
class Upload:
    """The frames of a clip for the retrieval model and for the question answering model."""

    clip: Clip
    images: Sequence[bytes]
    question_images: Sequence[bytes]


class Uploads:
    """The latest ``most`` clips by an id that nobody can guess."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._kept: OrderedDict[str, Upload] = OrderedDict()

    def add(self, upload: Upload) -> str:
        """Keeps a clip; returns its id."""
        video_id = f"upload-{secrets.token_hex(16)}"
        with self._lock:
            self._kept[video_id] = upload
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return video_id

    def get(self, video_id: str) -> Upload | None:
        """The clip with an id, if it is still kept."""
        with self._lock:
            return self._kept.get(video_id)
