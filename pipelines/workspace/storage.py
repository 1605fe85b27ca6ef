"""A folder at any URI: a local path, ``s3://``, ``gs://``; everything is committed atomically.

Endpoints and credentials come from the environment variables of the object store's own
tools (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``, …) and are
never written anywhere. If an object store fails for less than a minute, the run only waits. If it fails for longer, an
error names the place and says what to do.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.workspace.errors import UNREADABLE, DamagedFileError, StorageError, reason, remedy
from pipelines.workspace.file_systems import read_patiently, resolve
from pipelines.workspace.parquet import read_parquet, to_parquet
from pipelines.workspace.uris import absolute_uri, join_uri, shown

_TEMPORARY = ".tmp-"
_SET_ASIDE = ".damaged"  # behind ".parquet", so that listings of shards leave it out


@dataclass(frozen=True)
class Storage:
    """A folder at ``uri``; every path given to its methods is relative to that folder."""

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", absolute_uri(self.uri))

    def __getstate__(self) -> dict[str, Any]:
        # The open file system holds credentials, and those of another node may differ: it opens its own.
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
        self.path(*parts)  # refuses parts that leave this folder
        return Storage(join_uri(self.uri, *parts))

    def place(self, path: str = "") -> str:
        """``path`` inside this folder as messages name it, without credentials and options."""
        return "/".join(filter(None, [shown(self.uri), path]))

    @contextmanager
    def _naming(self, deed: str, path: str) -> Iterator[None]:
        """Turns errors of the storage into ``StorageError``, except that a file does not exist."""
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            raise self._named(error, deed, path) from error

    def _named(self, error: OSError, deed: str, path: str) -> StorageError:
        named = StorageError(f"cannot {deed} {self.place(path)}: {reason(error)}. {remedy(error)}")
        named.errno = error.errno
        return named

    def exists(self, path: str) -> bool:
        """Whether a file or folder lies at ``path``."""
        target = self.path(path)
        with self._naming("look at", path):
            return bool(self.filesystem.get_file_info(target).type != pafs.FileType.NotFound)

    def files(self, path: str = "", *, suffix: str = "") -> list[str]:
        """Names of the committed files in the folder ``path`` that end in ``suffix``, sorted."""
        return list(self.sizes(path, suffix=suffix))

    def sizes(self, path: str = "", *, suffix: str = "") -> dict[str, int]:
        """The same files with their sizes in bytes."""
        files = {
            info.base_name: int(info.size)
            for info in self._listing(path)
            if info.type == pafs.FileType.File
            and info.base_name.endswith(suffix)
            and not info.base_name.startswith(_TEMPORARY)
        }
        return dict(sorted(files.items()))

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in the folder ``path``, sorted."""
        return sorted(info.base_name for info in self._listing(path) if info.type == pafs.FileType.Directory)

    def _listing(self, path: str) -> list[Any]:
        # In an object store a folder without objects does not exist.
        selector = pafs.FileSelector(self.path(path), allow_not_found=True)
        with self._naming("list", path):
            found: list[Any] = self.filesystem.get_file_info(selector)
        return found

    def read_bytes(self, path: str) -> bytes:
        """The contents of the file at ``path``.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it could not be read.
        """
        target = self.path(path)
        # Opened as a file and not as a stream, because an object is then read in one request.
        with self._naming("read", path), self.filesystem.open_input_file(target) as file:
            try:
                # read_at, because each try has to begin at the first byte.
                return bytes(read_patiently(lambda: file.read_at(file.size(), 0)))
            except OSError as error:
                # S3 reports an internal failure if the object is deleted after it was opened.
                if self.exists(path):
                    raise
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.place(path)) from error

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        """Writes ``data`` to ``path`` so that a reader sees all of it or nothing.

        Raises:
            StorageError: it could not be written; nothing of it is visible.
        """
        target = self.path(path)
        with self._naming("write", path):
            if self.is_local:
                _replace_file(Path(target), data)
            else:
                if self.filesystem.type_name == "gcs":
                    # Only folders that were created are listed and can be removed.
                    self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
                # One upload of a complete buffer: object stores show an object when it is complete.
                # By default Arrow compresses where a name ends in .gz or .bz2.
                with self.filesystem.open_output_stream(target, compression=None) as stream:
                    stream.write(data)

    def read_json(self, path: str) -> Any:
        """The JSON document at ``path``.

        Raises:
            DamagedFileError: the file holds something else.
        """
        content = self.read_bytes(path)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(_damaged(self.place(path), "a JSON document", error)) from error

    def write_json(self, path: str, document: Any) -> None:
        """Commits ``document`` as JSON at ``path``."""
        self.write_bytes(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())

    def read_table(self, path: str, *, columns: Iterable[str] | None = None) -> pa.Table:
        """The Parquet file at ``path``, or some of its columns.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFileError: it is no Parquet file with these columns, or its bytes have changed since
                they were written.
            StorageError: it could not be read.
        """
        names = None if columns is None else list(columns)
        target = self.path(path)
        try:
            with self.filesystem.open_input_file(target) as file:
                return read_patiently(lambda: read_parquet(file, columns=names))
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            # Is the file damaged, or did reading fail? If its complete bytes cannot be parsed, it is damaged.
            self.require_whole_table(path)
            if isinstance(error, OSError):
                raise self._named(error, "read", path) from error
            raise DamagedFileError(_damaged(self.place(path), f"a table with {names}", error)) from error

    def require_whole_table(self, path: str) -> None:
        """Reads all bytes of the Parquet file at ``path``.

        Raises:
            FileNotFoundError, StorageError: as :meth:`read_bytes`.
            DamagedFileError: it is not a Parquet file, or its bytes have changed since they were written.
        """
        content = self.read_bytes(path)
        try:
            read_parquet(pa.BufferReader(content))
        except UNREADABLE as error:
            raise DamagedFileError(_damaged(self.place(path), "a whole Parquet file", error)) from error

    def set_aside(self, path: str) -> str:
        """Renames the file at ``path``, so that it is no longer used but can be inspected; returns the new name."""
        aside = f"{path}{_SET_ASIDE}"
        with self._naming("rename", path):
            self.filesystem.move(self.path(path), self.path(aside))
        return aside

    def was_set_aside(self, path: str) -> bool:
        """Whether a file that was at ``path`` has been set aside."""
        return self.exists(f"{path}{_SET_ASIDE}")

    def write_table(
        self,
        path: str,
        table: pa.Table,
        *,
        row_group_size: int | None = None,
        footer: Mapping[str, str] | None = None,
    ) -> int:
        """Commits ``table`` as Parquet at ``path``; returns the number of bytes.

        ``row_group_size`` 1 makes every row readable at random. ``footer`` holds texts that lie beside the table.
        """
        buffer = to_parquet(table, row_group_size=row_group_size, footer=footer)
        self.write_bytes(path, buffer)
        return int(buffer.size)

    def delete(self, path: str) -> None:
        """Removes the file or folder at ``path`` if there is one."""
        target = self.path(path)
        with self._naming("delete", path):
            info = self.filesystem.get_file_info(target)
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(target)
            elif info.type == pafs.FileType.File:
                self.filesystem.delete_file(target)

    def download(self, path: str, folder: Path) -> Path:
        """A local copy of the folder at ``path``; a local folder is returned where it is."""
        if self.is_local:
            return Path(self.path(path))
        # Both file systems are given, because Arrow would read a folder's name that looks like a URI as one.
        source, local = self.path(path), pafs.LocalFileSystem()
        with self._naming(f"copy to {folder}", path):
            read_patiently(
                lambda: pafs.copy_files(
                    source, str(folder), source_filesystem=self.filesystem, destination_filesystem=local
                )
            )
        return folder

    def upload(self, folder: Path, path: str) -> None:
        """Copies the files of the local ``folder`` to the folder ``path``, each atomically."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.write_bytes(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def _replace_file(place: Path, data: bytes | pa.Buffer) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a file is replaced atomically only within a file system.
    temporary = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{place.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Without this, a machine that stops may leave the new name with an empty file.
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _damaged(place: str, wanted: str, error: Exception) -> str:
    return f"{place} is not {wanted}: {reason(error)}; it is damaged, or another program wrote it"
