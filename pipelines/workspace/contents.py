"""Digests of what files hold, wherever they lie."""

from __future__ import annotations

import hashlib

from pipelines.workspace.file_systems import resolve
from pipelines.workspace.uris import absolute_uri

_READ_BYTES = 2**22
_LARGE_BYTES = 2**24
_digests: dict[tuple[str, int, int | None], str] = {}
"""Of large files that this process has read, by place, size and time of the last change."""


def content_digest(uri: str) -> str:
    """Hex digest of the contents of the file at ``uri``; a large file that did not change is read once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the scheme is not one that pyarrow knows.
    """
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    known = (absolute_uri(uri), info.size, info.mtime_ns)
    if known in _digests:
        return _digests[known]
    found = hashlib.sha256()
    # By default Arrow unpacks what is named .gz or .bz2; the bytes of the file count.
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_READ_BYTES):
            found.update(block)
    # Small files are not remembered: one that is rewritten within a tick of the file system's clock keeps its time.
    if info.size is not None and info.size >= _LARGE_BYTES:
        _digests[known] = found.hexdigest()
    return found.hexdigest()
