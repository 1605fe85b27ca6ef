"""Hints for messages about missing videos: which files lie where they were looked for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.datasets.video_files import VIDEO_SUFFIXES, VideoFile, VideoFolder, video_stem
from pipelines.workspace.errors import examples
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import is_text, join_uri, last_name, parent_uri, shown, suffix_of


def what_is_there(missing: Sequence[str], folder: VideoFolder | None = None) -> str:
    """A sentence about the place where the ``missing`` videos were looked for: how many files it holds, and similar
    names.

    Args:
        missing: addresses.
        folder: a listing that they were looked for in; their own folders otherwise.
    """
    sentences = []
    for listing in _where(missing, folder):
        names = [posixpath.basename(path) for path in listing.files]
        videos = [name for name in names if suffix_of(name) in VIDEO_SUFFIXES]
        sentences.append(
            f"{shown(listing.uri)} holds {len(names):,} files, {len(videos):,} of them named as videos"
            f"{f', such as {examples(videos)}' if videos else ''}"
        )
    return "; ".join([*sentences, *named_alike(missing, folder)])


def named_alike(missing: Sequence[str], folder: VideoFolder | None = None) -> list[str]:
    """Sentences about files whose names differ from ``missing`` ones only in upper case or the suffix.

    Args are those of :func:`what_is_there`.
    """
    wanted = {video_stem(last_name(uri)).casefold(): last_name(uri) for uri in missing}
    sentences = []
    for listing in _where(missing, folder):
        names = [posixpath.basename(path) for path in listing.files]
        alike = [(wanted[stem], name) for name in names if (stem := video_stem(name).casefold()) in wanted]
        if pairs := [f"{name}, and {other} was looked for" for other, name in alike if name != other]:
            sentences.append(
                # In the folder of a data set files are found by their stem, whatever their suffix.
                f"capitals{' count' if folder is not None else ' and suffixes count'}: there is "
                + examples(pairs, separator="; ")
            )
    return sentences


def _where(missing: Sequence[str], folder: VideoFolder | None) -> list[VideoFolder]:
    """The listing that ``missing`` were looked for in, or those of their own folders, two of them at most."""
    if folder is not None:
        return [folder]
    # It is only a hint, and each folder costs a listing.
    return [_neighbours(place) for place in list(dict.fromkeys(parent_uri(uri) for uri in missing[:100]))[:2]]


def _neighbours(uri: str) -> VideoFolder:
    """The files of one folder, as far as they can be listed; none if the folder does not exist."""
    folder = Storage(uri)
    names: Iterable[str] = ()
    # The message that the hint belongs to must be seen, whether the folder can be listed or not.
    with suppress(OSError):
        if folder.is_local:
            # Arrow's listing stops at a name that is not UTF-8.
            names = [path.name for path in Path(folder.uri).iterdir() if is_text(path.name)]
        else:
            names = folder.files()
    # Only the names are used, so sizes and times need not be looked up.
    return VideoFolder(folder.uri, {name: VideoFile(join_uri(folder.uri, name), 0, 0) for name in names})
