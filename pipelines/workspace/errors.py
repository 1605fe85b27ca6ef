"""Errors of reading and writing, and what the user can do about them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

import pyarrow as pa

from hbi_models.model_files import DamagedFileError as DamagedFileError

UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""What pyarrow raises about a file that is not Parquet."""

# EFBIG: the file is larger than the limit of the process (ulimit -f).
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What a store refuses comes from Arrow without an errno, and is known by these words alone.
_FORBIDDEN_BY_STORE = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]")


class StorageError(OSError):
    """A place could not be read or written; the message names it, the reason and what to do."""


def reason(error: Exception) -> str:
    """What ``error`` says, in a line without its full stop."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0].rstrip(".")[:300] if text else type(error).__name__


def is_forbidden(error: OSError) -> bool:
    """Whether permissions or credentials are what is missing."""
    return error.errno in _FORBIDDEN or _FORBIDDEN_BY_STORE.search(str(error)) is not None


def remedy(error: OSError) -> str:
    """What the user can do about an error of a storage, in a sentence without its full stop."""
    if error.errno in _NO_SPACE:
        todo = "No space is left there: make room, or choose another place"
    elif is_forbidden(error):
        todo = (
            "Change the permissions, or give credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "or GOOGLE_APPLICATION_CREDENTIALS)"
        )
    else:
        todo = "Check that the place exists and can be reached"
    return f"{todo}, and run the same command again: what is finished is kept"


def examples(items: Iterable[object], *, limit: int = 3, separator: str = ", ") -> str:
    """The first few of ``items`` as text, for messages about many."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return separator.join(listed[:limit]) + more
