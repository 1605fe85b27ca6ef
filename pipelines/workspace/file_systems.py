"""The file system behind a URI, with patience for object stores.

If an object store fails for less than a minute, the run only waits. If it fails for longer, an error names the place
and says what to do.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.workspace.errors import StorageError, reason, remedy
from pipelines.workspace.uris import absolute_uri, is_local, is_text, printable, shown, split_options

logger = logging.getLogger(__name__)

Read = TypeVar("Read")

_STORE = re.compile(r"(?P<scheme>s3|gs)://(?P<account>[^/@]*@)?(?P<bucket>[\w.-]+)(?P<key>/.*)?")
_STORE_VARIABLES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "STORAGE_")

_S3_ATTEMPTS = 12
"""The second attempt comes after 25 ms; each later one waits twice as long; the last one comes before 100 s have
passed."""

_S3_TIMEOUT_S = 30.0
"""Seconds without a byte after which a request is made again; the library's 3 s are too few for a busy store."""

_READS = 3
_BROKE_OFF = "Failed to flush response stream"
"""What the AWS SDK says of some answers that break off. It does not make these requests again, as it does after other
failures."""


def read_patiently(read: Callable[[], Read]) -> Read:
    """What ``read`` returns; it is called up to three times where the answer of a store breaks off."""
    left = _READS
    while True:
        try:
            return read()
        except OSError as error:
            left -= 1
            if not left or _BROKE_OFF not in str(error):
                raise
            logger.info("the answer of a store broke off; reading again: %s", reason(error))


class _PatientS3(pafs.S3FileSystem):  # type: ignore[misc]
    """S3 with more retries than the default, which it keeps when it is sent to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        # The retry strategy is not among the options that pyarrow pickles.
        return _patient_s3, (options,)


def _s3_attempts() -> int:
    given = os.environ.get("AWS_MAX_ATTEMPTS", str(_S3_ATTEMPTS))
    if not (given.isdecimal() and int(given) > 0):
        raise ValueError(f"AWS_MAX_ATTEMPTS is {given!r}; give how often a request is made, a positive number")
    return int(given)


def _patient_s3(options: dict[str, Any]) -> _PatientS3:
    return _PatientS3(
        **{
            **options,
            # The standard strategy gives up early when many threads fail at the same time.
            "retry_strategy": pafs.AwsDefaultS3RetryStrategy(max_attempts=_s3_attempts()),
            "request_timeout": _S3_TIMEOUT_S,
            "connect_timeout": _S3_TIMEOUT_S,
            # Otherwise an upload that fails to begin is closed as an empty object.
            "allow_delayed_open": False,
        }
    )


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of ``uri`` and the path in it.

    Raises:
        ValueError: the scheme is not one that pyarrow knows.
        StorageError: S3 could not be asked for the region of the bucket.
    """
    uri = absolute_uri(uri)
    if is_local(uri):
        if "\0" in uri:
            raise ValueError(f"{uri[:80]!r} holds a null character, which is not allowed in a path")
        if not is_text(uri):
            raise ValueError(f"{printable(uri)} is not UTF-8 text, which tables and pages need; rename it")
        return _local(), uri
    address, options = split_options(uri)
    if not (parts := _STORE.fullmatch(address)):
        # Arrow knows further addresses, or says what is wrong with this one.
        return _open(uri)
    # Part of the cache's key: with other credentials it is another connection.
    environment = tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith(_STORE_VARIABLES)))
    account, bucket, key = (parts[name] or "" for name in ("account", "bucket", "key"))
    filesystem = _open_store(f"{parts['scheme']}://{account}{bucket}{options}", environment)
    return filesystem, bucket + unquote(key).rstrip("/")


@lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


@lru_cache(maxsize=16)
def _open_store(uri: str, _environment: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    # Making a file system is slow and requests credentials; one per video would be throttled.
    return _open(uri)[0]


def _open(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except OSError as error:
        raise StorageError(f"cannot open {shown(uri)}: {reason(error)}. {remedy(error)}") from error
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"cannot open {uri!r}: {str(error).splitlines()[0]}. Give a local path, or a URI that starts with "
            "file://, s3:// or gs://"
        ) from error
    if isinstance(filesystem, pafs.S3FileSystem):
        # An address cannot hold a retry strategy, so the file system is made again with what Arrow has read from it.
        _, (options,) = filesystem.__reduce__()
        filesystem = _patient_s3(options)
    return filesystem, path


def check_uri(uri: str) -> None:
    """Raises ``ValueError`` if ``uri`` is not an address; sends no request to a store."""
    if not is_local(uri) and not _STORE.fullmatch(split_options(absolute_uri(uri))[0]):
        resolve(uri)
