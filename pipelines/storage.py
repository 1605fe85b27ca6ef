"""A folder at any URI: a local path, ``s3://``, ``gs://``; everything is committed atomically.

Endpoints and credentials come from the environment variables of the object store's own
tools (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``, …) and are
never written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_TEMPORARY = ".tmp-"


def absolute_uri(uri: str) -> str:
    """``uri`` with a local path made absolute; other URIs are returned as they are."""
    if _SCHEME.match(uri):
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))


def is_local(uri: str) -> bool:
    """Whether ``uri`` names a path of this machine's file system."""
    return not _SCHEME.match(uri) or uri.startswith("file://")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of ``uri`` and the path in it.

    Raises:
        ValueError: the scheme is not one that pyarrow knows.
    """
    try:
        return pafs.FileSystem.from_uri(absolute_uri(uri))  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"cannot open {uri!r}: {str(error).splitlines()[0]}. Give a local path, or a URI that starts with "
            "file://, s3:// or gs://"
        ) from error


@dataclass(frozen=True)
class Storage:
    """A folder at ``uri``; every path given to its methods is relative to that folder."""

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", absolute_uri(self.uri))

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "uri", state["uri"])

    @cached_property
    def _root(self) -> tuple[pafs.FileSystem, str]:
        return resolve(self.uri)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow file system of this folder."""
        return self._root[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """The file-system path of ``parts`` inside this folder.

        Raises:
            ValueError: a part is absolute or leaves the folder.
        """
        for part in parts:
            if part.startswith("/") or ".." in part.split("/"):
                raise ValueError(f"{part!r} would leave {self.uri}; paths in a workspace are relative and have no '..'")
        return "/".join([self._root[1].rstrip("/"), *(part for part in parts if part)])

    def folder(self, *parts: str) -> Storage:
        """The sub-folder at ``parts``; it need not exist."""
        self.path(*parts)
        return Storage("/".join([self.uri, *parts]))

    def exists(self, path: str) -> bool:
        """Whether a file or folder lies at ``path``."""
        info = self.filesystem.get_file_info(self.path(path))
        return bool(info.type != pafs.FileType.NotFound)

    def files(self, path: str = "", *, suffix: str = "") -> list[str]:
        """Names of the committed files in the folder ``path`` that end in ``suffix``, sorted."""
        selector = pafs.FileSelector(self.path(path), allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File
            and info.base_name.endswith(suffix)
            and not info.base_name.startswith(_TEMPORARY)
        )

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in the folder ``path``, sorted."""
        selector = pafs.FileSelector(self.path(path), allow_not_found=True)
        return sorted(
            info.base_name for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.Directory
        )

    def read_bytes(self, path: str) -> bytes:
        """The contents of the file at ``path``."""
        with self.filesystem.open_input_stream(self.path(path), compression=None) as stream:
            return bytes(stream.read())

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        """Writes ``data`` to ``path`` so that a reader sees all of it or nothing."""
        target = self.path(path)
        if not self.is_local:
            # One upload of a complete buffer: object stores show an object when it is complete.
            with self.filesystem.open_output_stream(target, compression=None) as stream:
                stream.write(data)
            return
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{place.name}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot write {target}: {error.strerror}; nothing was left behind") from error

    def read_json(self, path: str) -> Any:
        """The JSON document at ``path``."""
        return json.loads(self.read_bytes(path))

    def write_json(self, path: str, document: Any) -> None:
        """Commits ``document`` as JSON at ``path``."""
        self.write_bytes(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())

    def read_table(self, path: str, *, columns: Iterable[str] | None = None) -> pa.Table:
        """The Parquet file at ``path``."""
        names = None if columns is None else list(columns)
        with self.filesystem.open_input_file(self.path(path)) as file:
            return pq.read_table(file, columns=names)

    def write_table(self, path: str, table: pa.Table, *, row_group_size: int | None = None) -> int:
        """Commits ``table`` as Parquet at ``path``; returns the number of bytes.

        ``row_group_size`` 1 makes every row readable at random.
        """
        sink = pa.BufferOutputStream()
        # Frames are compressed already; compressing them again costs time and saves nothing.
        pq.write_table(table, sink, row_group_size=row_group_size, compression="none", use_dictionary=False)
        buffer = sink.getvalue()
        self.write_bytes(path, buffer)
        return int(buffer.size)

    def delete(self, path: str) -> None:
        """Removes the file or folder at ``path`` if there is one."""
        target = self.path(path)
        info = self.filesystem.get_file_info(target)
        if info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(target)
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(target)

    def download(self, path: str, folder: Path) -> Path:
        """A local copy of the folder at ``path``; a local folder is returned where it is."""
        if self.is_local:
            return Path(self.path(path))
        pafs.copy_files(self.path(path), str(folder), source_filesystem=self.filesystem)
        return folder

    def upload(self, folder: Path, path: str) -> None:
        """Copies the files of the local ``folder`` to the folder ``path``, each atomically."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.write_bytes(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
