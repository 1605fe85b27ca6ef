"""What kind of key frame a packet holds: H.264 and HEVC have several kinds.

After an *instant* refresh (IDR) nothing that came before is needed. A *clean* start is one from which everything
that is shown later can be decoded: also an open GOP, whose pictures shown earlier but stored later are lost. An
intra refresh renews the picture bit by bit over many frames, and is neither.
"""

from __future__ import annotations

from collections.abc import Iterator

# Types of NAL units: table 7-1 of H.264, and of HEVC.
_H264_IDR, _H264_SEI, _H264_DELIMITER = 5, 6, 9
_HEVC_IDR, _HEVC_RANDOM_ACCESS, _HEVC_DELIMITER = range(19, 21), range(16, 22), 35
_RECOVERY_POINT = 6  # of the payloads of an SEI unit (H.264, D.1)


def is_instant_refresh(codec: str, packet: bytes, extradata: bytes | None) -> bool:
    """Whether nothing before the key frame in ``packet`` is needed after it, in the order of the file."""
    if codec == "h264":
        return any(unit[0] & 0x1F == _H264_IDR for unit in _units(packet, extradata, length_at=4))
    if codec == "hevc":
        return any((unit[0] >> 1) & 0x3F in _HEVC_IDR for unit in _units(packet, extradata, length_at=21))
    # Nothing in these refers across a key frame. In MPEG-2 and MPEG-4, B-frames that are stored behind one do.
    return codec in ("vp8", "vp9", "av1", "h263", "flv1", "mjpeg")


def is_clean_start(codec: str, packet: bytes, extradata: bytes | None) -> bool:
    """Whether what is shown after the key frame in ``packet`` can be decoded from there on."""
    if codec == "h264":
        units = list(_units(packet, extradata, length_at=4))
        return any(
            unit[0] & 0x1F == _H264_IDR or (unit[0] & 0x1F == _H264_SEI and _recovers_at_once(unit)) for unit in units
        )
    if codec == "hevc":
        return any((unit[0] >> 1) & 0x3F in _HEVC_RANDOM_ACCESS for unit in _units(packet, extradata, length_at=21))
    return True


def holds_no_picture(codec: str, packet: bytes, extradata: bytes | None) -> bool:
    """Whether a packet holds only filler or supplemental information; recorders that skip a picture write such ones."""
    if codec == "h264":
        return not any(1 <= unit[0] & 0x1F <= _H264_IDR for unit in _units(packet, extradata, length_at=4))
    if codec == "hevc":
        return not any((unit[0] >> 1) & 0x3F < 32 for unit in _units(packet, extradata, length_at=21))
    return False


def holds_joined_units(codec: str, packet: bytes) -> bool:
    """Whether a packet begins with an access unit without a picture, followed by the access unit of its picture.

    FFmpeg joins the two and gives the picture the time of the first.
    """
    kinds = _kinds(codec, packet)
    picture = next((place for place, (_, is_picture) in enumerate(kinds) if is_picture), len(kinds))
    return sum(is_delimiter for is_delimiter, _ in kinds[:picture]) > 1


def _kinds(codec: str, packet: bytes) -> list[tuple[bool, bool]]:
    """For each unit in a packet: whether it is a delimiter of access units, and whether it is a picture."""
    if codec == "h264":
        found = [unit[0] & 0x1F for unit in _units(packet, None, length_at=4)]
        return [(kind == _H264_DELIMITER, 1 <= kind <= _H264_IDR) for kind in found]
    if codec == "hevc":
        found = [(unit[0] >> 1) & 0x3F for unit in _units(packet, None, length_at=21)]
        return [(kind == _HEVC_DELIMITER, kind < 32) for kind in found]
    return []


def _units(packet: bytes, extradata: bytes | None, *, length_at: int) -> Iterator[bytes]:
    """Network abstraction layer units, none of them empty: after their length (MP4) or a start code (streams).

    Args:
        packet: what holds them.
        extradata: of the codec; its first byte is 1 where units follow their length.
        length_at: byte of ``extradata`` whose lowest two bits are the length's own length, less one.
    """
    if extradata and extradata[0] == 1 and len(extradata) > length_at:
        width, start = (extradata[length_at] & 3) + 1, 0
        while start + width < len(packet):
            size = int.from_bytes(packet[start : start + width], "big")
            if size:
                yield packet[start + width : start + width + size]
            start += width + size
    else:
        # Of a start code of four bytes, a zero stays at the end of the unit before, where nobody looks.
        yield from filter(None, packet.split(b"\x00\x00\x01")[1:])


def _recovers_at_once(sei: bytes) -> bool:
    """Whether supplemental information holds a recovery point after which no frame is incomplete (H.264, D.2.8)."""
    # Without the bytes that keep start codes out of the content (7.4.1).
    content, start = sei[1:].replace(b"\x00\x00\x03", b"\x00\x00"), 0
    while start + 2 < len(content):
        kind = size = 0
        # A type, and a size, is a sum of bytes, of which all but the last are 255 (7.3.2.3.1).
        while start < len(content) and content[start] == 0xFF:
            kind, start = kind + 255, start + 1
        if start >= len(content):
            return False
        kind, start = kind + content[start], start + 1
        while start < len(content) and content[start] == 0xFF:
            size, start = size + 255, start + 1
        if start + 1 >= len(content):
            return False
        size, start = size + content[start], start + 1
        if kind == _RECOVERY_POINT:
            # recovery_frame_cnt is an Exp-Golomb number: a first bit of 1 is zero frames.
            return bool(content[start] & 0x80)
        start += size
    return False
