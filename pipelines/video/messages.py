"""Messages between the pipeline and its decoding process: a JSON header and blobs of bytes.

The process may have been corrupted by damaged files. Nothing is pickled, so that it cannot send code; sizes are
bounded, so that it cannot fill the memory. Layout: two big-endian 64-bit lengths (header, rest), the header, the blobs
back to back.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_LENGTHS = struct.Struct(">QQ")
_CHUNK = 1 << 20  # bytes at a time; in between, the deadline is looked at
_MAX_HEADER_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Message:
    """A JSON object, and bytes beside it."""

    header: dict[str, Any]
    blobs: Sequence[bytes] = ()


class DeadlineError(Exception):
    """The other side did not read or write in time."""


class MalformedMessageError(Exception):
    """What was received is not a message."""


def send(file: int, message: Message, *, deadline: float | None = None) -> None:
    """Writes ``message`` to a file descriptor, which does not block if there is a ``deadline``.

    Args:
        file: the descriptor.
        message: what to send.
        deadline: value of ``time.monotonic()`` after which to give up.

    Raises:
        DeadlineError: the deadline passed.
        BrokenPipeError: the other side is gone.
    """
    header = json.dumps({**message.header, "blob_sizes": [len(blob) for blob in message.blobs]}).encode()
    start = _LENGTHS.pack(len(header), sum(len(blob) for blob in message.blobs)) + header
    for part in (start, *message.blobs):
        rest = memoryview(part)
        while rest:
            if deadline is not None:
                _wait(file, deadline, write=True)
            rest = rest[os.write(file, rest[:_CHUNK]) :]


def receive(file: int, *, deadline: float | None = None, max_blob_bytes: int | None = None) -> Message:
    """Reads one message from a file descriptor, see ``send``.

    Raises:
        DeadlineError: the deadline passed.
        EOFError: the other side is gone.
        MalformedMessageError: it sent something else, or more than ``max_blob_bytes`` beside the header.
    """
    header_size, blobs_size = _LENGTHS.unpack(_read(file, _LENGTHS.size, deadline))
    if header_size > _MAX_HEADER_BYTES or (max_blob_bytes is not None and blobs_size > max_blob_bytes):
        raise MalformedMessageError(f"a message of {header_size:,} and {blobs_size:,} bytes is announced")
    try:
        header = json.loads(_read(file, header_size, deadline))
        sizes = header.pop("blob_sizes")
    except (ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise MalformedMessageError("the header is not the expected JSON object") from error
    if (
        not isinstance(sizes, list)
        or any(type(size) is not int or size < 0 for size in sizes)
        or sum(sizes) != blobs_size
    ):
        raise MalformedMessageError("the sizes in the header are not those of the blobs")
    rest = _read(file, blobs_size, deadline)
    ends = list(accumulate(sizes))
    return Message(header, [rest[end - size : end] for size, end in zip(sizes, ends, strict=True)])


def _read(file: int, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if deadline is not None:
            _wait(file, deadline, write=False)
        part = os.read(file, min(size - len(parts), _CHUNK))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _wait(file: int, deadline: float, *, write: bool) -> None:
    # select.select takes no descriptor above 1023, and a worker may have many files open.
    poll = select.poll()
    poll.register(file, select.POLLOUT if write else select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise DeadlineError
