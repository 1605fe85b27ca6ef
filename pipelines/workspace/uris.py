"""Paths and URIs: what is local, what is absolute, how an address is joined and shown."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")


def absolute_uri(uri: str) -> str:
    """``uri`` with a local path made absolute; other URIs are returned as they are."""
    if SCHEME.match(uri):
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))


def is_local(uri: str) -> bool:
    """Whether ``uri`` names a path of this machine's file system."""
    return not SCHEME.match(uri) or uri.startswith("file://")


def shown(uri: str) -> str:
    """``uri`` for messages: without the credentials and options that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0] if SCHEME.match(uri) else uri)


def join_uri(base: str, path: str) -> str:
    """The address of the relative ``path`` below ``base``, with the options of ``base`` kept."""
    base = absolute_uri(base)
    if is_local(base) and not base.startswith("file://"):
        return f"{base.rstrip('/')}/{path}"
    folder, mark, options = base.partition("?")
    return f"{folder.rstrip('/')}/{quote(path)}{mark}{options}"
