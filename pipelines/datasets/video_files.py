"""Finding the video files that annotations name, with as few requests as possible."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pyarrow.fs as pafs

from pipelines.workspace.errors import StorageError, examples, is_forbidden, reason, remedy
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import (
    absolute_uri,
    is_local,
    is_text,
    join_uri,
    parent_uri,
    printable,
    shown,
)

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "qt", "3gp", "3g2", "mkv", "webm", "avi", "flv"),
        *("mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "asf", "ogv"),
    )
)
"""Suffixes of the formats that can be decoded."""

_VIDEO_ID = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
"""ASCII letters and digits, and what published ids contain besides: dashes, also in front (MSVD, ActivityNet), and the
@ of Flickr's users (DiDeMo). None of them can end a path, a line or a tag."""


NO_FILE = "no such file"
_OWN_FAULTS = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ}
)
"""Errors caused by the name or the permissions of one file or folder. Any other error, such as that of a file server
that does not answer, may be temporary; its videos must not be recorded as missing."""

_NO_TEXT = "its path is not UTF-8 text; rename it"


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file as its file system lists it: size in bytes, time of last change in nanoseconds."""

    uri: str
    size: int
    mtime_ns: int


class Place(TypedDict):
    """Where the file of an annotated video lies, or where it was expected and why it cannot be used."""

    uri: str
    file: VideoFile | None
    why_missing: str


@dataclass(frozen=True, slots=True)
class VideoFolder:
    """The files below a folder, by their relative path; hidden files are left out."""

    uri: str
    files: Mapping[str, VideoFile]

    unusable: Mapping[str, str] = field(default_factory=dict)
    """Files that cannot be examined, or have an unusable name: the reason by relative path."""

    closed: Mapping[str, str] = field(default_factory=dict)
    """Folders that cannot be listed: the reason by relative path."""

    def by_stem(self) -> dict[str, list[VideoFile]]:
        """Files by ``video_stem`` of their name, so that ids of annotations find their file."""
        stems: dict[str, list[VideoFile]] = {}
        for path, file in self.files.items():
            stems.setdefault(video_stem(posixpath.basename(path)), []).append(file)
        return stems

    def reasons_by_stem(self) -> dict[str, str]:
        """Why files cannot be used, by ``video_stem`` of their name."""
        return {
            video_stem(posixpath.basename(path)): f"{printable(path)}: {why}" for path, why in self.unusable.items()
        }

    def troubles(self) -> list[str]:
        """Sentences about what cannot be used."""
        return [
            f"{len(paths):,} {what} below {shown(self.uri)} cannot be {deed}: "
            f"{examples(f'{printable(path)} ({why})' for path, why in paths.items())}"
            for paths, what, deed in ((self.closed, "folders", "listed"), (self.unusable, "files", "used"))
            if paths
        ]

    def digest(self) -> str:
        """Changes when a file is added, removed or changed."""
        listing = "\n".join(f"{path}\t{file.size}\t{file.mtime_ns}" for path, file in sorted(self.files.items()))
        return hashlib.sha256(listing.encode()).hexdigest()


def list_videos(uri: str) -> VideoFolder:
    """Everything below the folder at ``uri``, in one recursive listing.

    A file or folder that cannot be used does not stop the listing: it is in ``unusable`` or ``closed``.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: it cannot be listed.
    """
    folder = Storage(uri)
    try:
        return _list_local(folder.uri) if folder.is_local else _list_store(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder.place()} is not a folder; set data.videos to the folder of the videos"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot list {folder.place()}: {reason(error)}. {remedy(error)}") from error


def _list_store(folder: Storage) -> VideoFolder:
    root = folder.path()
    files = {}
    for info in folder.filesystem.get_file_info(pafs.FileSelector(root, recursive=True)):
        path = info.path[len(root) :].lstrip("/")
        if info.type == pafs.FileType.File and not any(part.startswith(".") for part in path.split("/")):
            # Arrow has None where a store tells no time.
            files[path] = VideoFile(join_uri(folder.uri, path), info.size, info.mtime_ns or 0)
    return VideoFolder(folder.uri, files)


def _list_local(root: str) -> VideoFolder:
    """Like Arrow's listing, which follows links, except that a bad name or a closed folder does not stop it."""
    files: dict[str, VideoFile] = {}
    unusable: dict[str, str] = {}
    closed: dict[str, str] = {}
    top = Path(root).stat()
    # Each folder comes with its identity and those of the folders above it, because a link back up would never end.
    waiting = [("", frozenset([(top.st_dev, top.st_ino)]))]
    while waiting:
        folder, above = waiting.pop()
        try:
            with os.scandir(f"{root}/{folder}") as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            # Without the top folder there is no listing at all.
            if not folder or error.errno not in _OWN_FAULTS:
                raise
            closed[folder] = reason(error)
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            try:
                found = entry.stat()
            except OSError as error:
                if error.errno not in _OWN_FAULTS:
                    raise
                unusable[path] = reason(error)
                continue
            identity = (found.st_dev, found.st_ino)
            if stat.S_ISDIR(found.st_mode) and identity not in above:
                waiting.append((path, above | {identity}))
            elif stat.S_ISREG(found.st_mode) and is_text(path):
                files[path] = VideoFile(join_uri(root, path), found.st_size, found.st_mtime_ns)
            elif stat.S_ISREG(found.st_mode):
                unusable[path] = _NO_TEXT
    return VideoFolder(root, files, unusable, closed)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """Which of the addresses that were looked for are files."""

    files: Mapping[str, VideoFile]

    reasons: Mapping[str, str]
    """Why other files cannot be used, where the reason is not that the file is missing."""

    def place(self, uri: str) -> Place:
        """The file at ``uri``, or why it cannot be used."""
        return {
            "uri": printable(uri),
            "file": self.files.get(uri),
            "why_missing": self.reasons.get(uri, NO_FILE),
        }


def find_files(uris: Sequence[str]) -> FoundFiles:
    """Those of ``uris`` that are files; one request per file, or per folder of an object store.

    Files in a bucket without permission to list it are not found; the log says so.

    Raises:
        StorageError: an object store does not answer.
    """
    files: dict[str, VideoFile] = {}
    reasons: dict[str, str] = {}
    by_folder: dict[str, list[str]] = {}
    for uri in uris:
        if is_local(uri):
            found = _find_local(uri)
            if isinstance(found, VideoFile):
                files[uri] = found
            else:
                reasons[uri] = found
        else:
            by_folder.setdefault(parent_uri(uri), []).append(uri)
    for folder, members in by_folder.items():
        try:
            files |= _find_together(members)
        except OSError as error:
            message = f"cannot list {shown(folder)}: {reason(error)}"
            # If a store that does not answer were ignored, all of its videos would be recorded as missing.
            if not is_forbidden(error):
                raise StorageError(f"{message}. {remedy(error)}") from error
            logger.warning("%s; its %d videos count as missing", message, len(members))
            reasons |= dict.fromkeys(members, message)
    return FoundFiles(files, reasons)


def _find_local(uri: str) -> VideoFile | str:
    """The file, or why it cannot be used."""
    if not is_text(uri):
        return _NO_TEXT
    try:
        found = Path(absolute_uri(uri)).stat()
    except FileNotFoundError:
        return NO_FILE
    # A path with a NUL, or a file:// address of another machine.
    except ValueError as error:
        return reason(error)
    except OSError as error:
        if error.errno not in _OWN_FAULTS:
            raise StorageError(f"cannot look at {uri}: {reason(error)}. {remedy(error)}") from error
        return reason(error)
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    return VideoFile(uri, found.st_size, found.st_mtime_ns)


def _find_together(uris: Sequence[str]) -> dict[str, VideoFile]:
    """Those of ``uris``, all in one folder of an object store, that are files."""
    filesystem = resolve(uris[0])[0]
    paths = {uri: resolve(uri)[1] for uri in uris}
    infos: Iterable[Any]
    if len(uris) == 1:
        infos = filesystem.get_file_info(list(paths.values()))
    else:
        # One request lists a thousand files of an object store, but tells about a single file otherwise.
        parent = posixpath.dirname(paths[uris[0]])
        # A folder that does not exist holds none of the files, and that is no error here.
        infos = filesystem.get_file_info(pafs.FileSelector(parent, allow_not_found=True))
    by_path = {info.path: info for info in infos if info.type == pafs.FileType.File}
    return {
        uri: VideoFile(uri, by_path[path].size, by_path[path].mtime_ns or 0)
        for uri, path in paths.items()
        if path in by_path
    }


def video_key(video_id: str, file: VideoFile, start_s: float | None, end_s: float | None) -> str:
    """A digest that changes with a video's content as far as a listing shows it, 32 hexadecimal digits.

    It covers the id, the segment, and the file's address, size and time of last change.
    """
    # Frames and labels are found by this key. If its text changed, all of them would be made again.
    identity = (video_id, file.uri, file.size, file.mtime_ns, start_s, end_s)
    return hashlib.sha256("\n".join(map(repr, identity)).encode()).hexdigest()[:32]


def video_stem(name: str) -> str:
    """The name of a file, or an id, without any suffixes of videos at its end.

    Copies of a data set name one video ``x.mov``, ``x.mp4``, ``x.mov.mp4`` or ``x``: all become ``x``. The name of
    another file, such as ``x.jpg`` or ``x.mp4.part``, stays as it is and matches no video.
    """
    stem, suffix = posixpath.splitext(name)
    return video_stem(stem) if suffix.lower() in VIDEO_SUFFIXES else name


def check_video_id(video_id: str, where: str) -> str:
    """Returns ``video_id`` if it is harmless in file names, logs and web pages.

    Raises:
        ValueError: it holds other characters than ``A-Z a-z 0-9 _ . @ -`` or is too long.
    """
    if not _VIDEO_ID.fullmatch(video_id) or video_id in (".", ".."):
        raise ValueError(
            f"{where}: video_id {video_id[:80]!r} is not allowed; use 1 to 128 of the characters A-Z a-z 0-9 _ . @ -"
        )
    return video_id
