"""Paths and URIs: what is a path of this machine, what is an address in an object store, and their parts.

A **path** is taken as it is written: ``#``, ``?``, ``%`` and spaces are ordinary characters. ``file:///a%20b`` is
another way to write the path ``/a b``, and becomes that path when it is read.

An **address in a store** (``s3://``, ``gs://``) is a URI: ``%20`` stands for a space. It may end with options of the
store, as in ``s3://bucket/a?region=eu-west-1``. A question mark that does not begin options and every ``#`` are
ordinary characters, as on a store's own command line; they are kept as ``%3F`` and ``%23``.

Only this module splits and joins addresses.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote, unquote

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_FILE = "file://"
_OPTIONS = re.compile(r"\?[a-z_]+=[^&]*(&[a-z_]+=[^&]*)*$")


def is_local(uri: str) -> bool:
    """Whether ``uri`` names a path of this machine's file system."""
    return is_path(uri) or uri.startswith(_FILE)


def is_path(uri: str) -> bool:
    """Whether ``uri`` is a path, which is taken as it is written; an address has escapes."""
    return not _SCHEME.match(uri)


def is_absolute(text: str) -> bool:
    """Whether a text names a place on a machine or in a store, and not a name or a relative path."""
    return text.startswith(("/", "~")) or bool(_SCHEME.match(text))


def split_options(uri: str) -> tuple[str, str]:
    """``uri`` without the options of its store, and these with their question mark; a path has none."""
    found = None if is_local(uri) else _OPTIONS.search(uri)
    return (uri[: found.start()], found[0]) if found else (uri, "")


def absolute_uri(uri: str) -> str:
    """The normal form of an address: an absolute path, or the URI of an object store.

    Raises:
        ValueError: a ``file://`` address names another machine, or that of a store no bucket.
    """
    if is_local(uri):
        return os.path.abspath(os.path.expanduser(_path_of_file_uri(uri) if uri.startswith(_FILE) else uri))
    address, options = split_options(uri)
    if not _SCHEME.sub("", address).strip("/"):
        raise ValueError(f"{uri} names no bucket; give one, as in s3://bucket/folder")
    return f"{address.rstrip('/').replace('#', '%23').replace('?', '%3F')}{options}"


def _path_of_file_uri(uri: str) -> str:
    host, slash, path = uri.removeprefix(_FILE).partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(
            f"{uri} names the machine {host!r}; an address of a file on this one has three slashes: file:///{path}"
        )
    return unquote(f"/{path}")


def shown(uri: str) -> str:
    """``uri`` for messages: without the credentials and options that it may hold."""
    return uri if is_local(uri) else re.sub(r"//[^/@]*@", "//", split_options(uri)[0])


def join_uri(base: str, *parts: str) -> str:
    """The address of the relative path ``parts`` below ``base``, with the options of ``base`` kept."""
    base = absolute_uri(base)
    path = "/".join(filter(None, parts))
    if is_local(base):
        return f"{base.rstrip('/')}/{path}".rstrip("/") or "/"
    folder, options = split_options(base)
    return f"{folder}/{quote(path, errors='surrogatepass')}".rstrip("/") + options


def parent_uri(uri: str) -> str:
    """The folder in which ``uri`` lies, with its options."""
    address, options = split_options(absolute_uri(uri))
    return f"{posixpath.dirname(address)}{options}"


def path_below(base: str, uri: str) -> str:
    """The relative path by which :func:`join_uri` comes from ``base`` to ``uri``, as it is written in a listing."""
    folder, _ = split_options(absolute_uri(base))
    address, _ = split_options(absolute_uri(uri))
    path = address.removeprefix(f"{folder.rstrip('/')}/")
    return path if is_local(uri) else unquote(path)


def last_name(uri: str) -> str:
    """The name of the file or folder at ``uri``, as it is written in a listing."""
    name = posixpath.basename(split_options(uri)[0].rstrip("/"))
    return name if is_path(uri) else unquote(name)


def suffix_of(uri: str) -> str:
    """The suffix of a file's name in lower case, with its dot; empty if there is none."""
    return posixpath.splitext(last_name(uri))[1].lower()


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, and can be written into tables and pages."""
    return printable(name) == name


def printable(name: str) -> str:
    """``name`` with escapes such as ``\\udce9`` in place of bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
