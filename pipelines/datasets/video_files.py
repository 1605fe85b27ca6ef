"""Finding the video files that annotations name, with as few requests as possible."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pipelines.workspace.errors import StorageError, is_forbidden, remedy
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import is_local, join_uri, shown

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
"""Letters and digits of ASCII, and what published ids hold besides: dashes also in front (MSVD,
ActivityNet) and the @ of Flickr's users (DiDeMo). None of them ends a path, a line or a tag."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file as its file system lists it: size in bytes, time of last change in nanoseconds."""

    uri: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class VideoFolder:
    """The files below a folder, by their relative path; hidden files are left out."""

    uri: str
    files: Mapping[str, VideoFile]

    def by_stem(self) -> dict[str, list[VideoFile]]:
        """Files by ``video_stem`` of their name, so that ids of annotations find their file."""
        stems: dict[str, list[VideoFile]] = {}
        for path, file in self.files.items():
            stems.setdefault(video_stem(posixpath.basename(path)), []).append(file)
        return stems

    def digest(self) -> str:
        """Changes when a file is added, removed or changed."""
        listing = "\n".join(f"{path}\t{file.size}\t{file.mtime_ns}" for path, file in sorted(self.files.items()))
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def list_videos(uri: str) -> VideoFolder:
    """Everything below the folder at ``uri``, in one recursive listing.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Storage(uri)
    root = folder.path()
    try:
        found = folder.filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{folder.uri} is not a folder; set data.videos to the folder of the videos") from error
    except OSError as error:
        raise StorageError(f"cannot list {folder.place()}: {error}. {remedy(error)}") from error
    files = {}
    for info in found:
        path = info.path[len(root) :].lstrip("/")
        if info.type == pafs.FileType.File and not any(part.startswith(".") for part in path.split("/")):
            files[path] = VideoFile(join_uri(folder.uri, path), info.size, info.mtime_ns or 0)
    return VideoFolder(folder.uri, files)


def find_files(uris: Sequence[str]) -> dict[str, VideoFile]:
    """Those of ``uris`` that are files; one request per file system, or per folder of an object store.

    Files in a bucket that may not be listed are not found, which the log says.

    Raises:
        StorageError: an object store does not answer.
    """
    by_folder: dict[str, list[str]] = {}
    for uri in uris:
        base = uri.partition("?")[0]
        by_folder.setdefault("" if is_local(uri) else posixpath.dirname(base), []).append(uri)
    found: dict[str, VideoFile] = {}
    for folder, members in by_folder.items():
        try:
            found |= _find_together(members)
        except OSError as error:
            message = f"cannot list {shown(folder)}: {error}"
            # A store that is away would make all of its videos missing, for good.
            if not is_forbidden(error):
                raise StorageError(f"{message}. {remedy(error)}") from error
            logger.warning("%s; its %d videos count as missing", message, len(members))
    return found


def _find_together(uris: Sequence[str]) -> dict[str, VideoFile]:
    """Those of ``uris``, all on one file system or in one folder of an object store, that are files."""
    filesystem = resolve(uris[0])[0]
    paths = {uri: resolve(uri)[1] for uri in uris}
    infos: Iterable[Any]
    if isinstance(filesystem, pafs.LocalFileSystem) or len(uris) == 1:
        infos = filesystem.get_file_info(list(paths.values()))
    else:
        # Object stores answer one request per thousand files of a listing, but per single file otherwise.
        parent = posixpath.dirname(paths[uris[0]])
        infos = filesystem.get_file_info(pafs.FileSelector(parent, allow_not_found=True))
    by_path = {info.path: info for info in infos if info.type == pafs.FileType.File}
    return {
        uri: VideoFile(uri, by_path[path].size, by_path[path].mtime_ns or 0)
        for uri, path in paths.items()
        if path in by_path
    }


def video_key(video_id: str, file: VideoFile, start_s: float | None, end_s: float | None) -> str:
    """A digest of a video's content as far as a listing tells it, 32 hexadecimal digits.

    It covers the id, the segment, and the file's address, size and time of last change.
    """
    identity = (video_id, file.uri, file.size, file.mtime_ns, start_s, end_s)
    return hashlib.sha256("\n".join(map(repr, identity)).encode()).hexdigest()[:32]


def video_stem(name: str) -> str:
    """The name of a file, or an id, without all suffixes of videos at its end.

    Copies of a data set name one video ``x.mov``, ``x.mp4``, ``x.mov.mp4`` or ``x``: all are ``x``. The
    name of another file, such as ``x.jpg`` or ``x.mp4.part``, stays as it is and is no video's.
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
