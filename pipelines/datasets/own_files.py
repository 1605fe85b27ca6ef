"""What the user's own files of captions, questions and videos share: addresses, ids and splits."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Mapping

from pipelines.datasets.record_files import Record, text_of
from pipelines.recipe.data import SPLITS, Split
from pipelines.workspace.file_systems import check_uri
from pipelines.workspace.uris import absolute_uri, is_path, join_uri

TEST_FRACTION_PERCENT = 10
"""Percentage of files that become the test split where a file names no split."""


def split_of(record: Record) -> Split | None:
    """The split that a record names.

    Raises:
        ValueError: it is not one of train, val and test.
    """
    text = text_of(record, "split")
    if text and text not in SPLITS:
        raise ValueError(f"split {text[:40]!r} is unknown; use one of {', '.join(SPLITS)}")
    # For the type checker, to which text itself is no Split.
    return next((split for split in SPLITS if split == text), None)


def video_address(address: str, base: str) -> str:
    """The URI of a video that a record names by a path relative to ``base``, an absolute one, or a URI.

    Raises:
        ValueError: a relative path leaves ``base``, or the scheme is unknown.
    """
    # "~" is the home folder where it stands for one, and otherwise a letter of a name.
    if not is_path(address) or posixpath.isabs(os.path.expanduser(address)):
        check_uri(address)
        return absolute_uri(address)
    if ".." in address.split("/") or "\0" in address:
        raise ValueError(f"path {address[:80]!r} leaves the folder of the videos; give an absolute path instead")
    return join_uri(base, posixpath.normpath(address))


def derived_id(address: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """A readable id that depends only on this address and segment, so that adding lines changes no other id."""
    stem = posixpath.splitext(posixpath.basename(address))[0]
    span = "" if start_s is None and end_s is None else f"\n{start_s}\n{end_s}"
    # The stem is for people to read. The hash makes the id unique, also among equal names in several folders.
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:80]}-{_hash(address + span)[:10]}"


def drawn_splits(uris: Mapping[str, str], warnings: list[str]) -> dict[str, Split]:
    """A split for each video id of a file that names no splits: a tenth of the files become the test split.

    A hash of a file's address decides, so that adding videos moves no other video. Segments of one file stay together,
    because they look alike.

    Args:
        uris: addresses of the files by video id.
        warnings: gets a sentence about it.
    """
    files = sorted(set(uris.values()), key=_hash)
    # At least one file is in the test split.
    tested = {uri for uri in files if int(_hash(uri)[:8], 16) % 100 < TEST_FRACTION_PERCENT} or {files[0]}
    splits: dict[str, Split] = {video_id: "test" if uri in tested else "train" for video_id, uri in uris.items()}
    num_tested = sum(split == "test" for split in splits.values())
    warnings.append(
        f"no line names a split: {num_tested:,} of {len(splits):,} videos become the test split, chosen by a hash "
        "of their files; add a column split (train, val, test) to choose yourself"
    )
    return splits


def _hash(text: str) -> str:
    # Python has surrogates in place of the bytes of a name that is not UTF-8.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
