"""An append-only log of JSON records that works on any storage: adding records commits one small file.

Object stores cannot append to a file. So a file takes a limited number of lines, and only the last file is written
again when records are added: a long log costs no more per record than a short one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.storage import Storage

_LINES = 256
"""Lines per file: about 0.1 MB of training points."""


class LineLog:
    """A log in ``name`` and, when that is full, in numbered files beside it; one process writes at a time.

    Args:
        storage: the folder.
        name: of the first file, with its suffix: ``history.jsonl``, then ``history-00001.jsonl``, …
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._stem, _, self._suffix = name.rpartition(".")
        self._number: int | None = None
        self._last: list[str] = []

    def records(self) -> list[Any]:
        """All records; while another process writes, the newest may be missing.

        Raises:
            DamagedFileError: a file holds something else.
        """
        while True:
            try:
                return [record for number in self._numbers() for record in self._records(number)]
            except FileNotFoundError:  # the log was finished meanwhile, and has one file now
                continue

    def append(self, records: Iterable[Any]) -> None:
        """Adds records; of those that share a file, all become visible or none."""
        # Read once: no other process writes meanwhile.
        if self._number is None:
            numbers = self._numbers()
            self._number = numbers[-1] if numbers else 0
            self._last = self._lines(self._number) if numbers else []
        waiting = [json.dumps(record) for record in records]
        while waiting:
            if len(self._last) >= _LINES:
                self._number, self._last = self._number + 1, []
            room = _LINES - len(self._last)
            lines = self._last + waiting[:room]
            self._write(self._number, lines)
            self._last, waiting = lines, waiting[room:]

    def replace(self, records: Iterable[Any]) -> None:
        """Finishes the log: puts ``records`` into the first file and removes all others.

        If it is interrupted, some of the later files stay.
        """
        others = [number for number in self._numbers() if number]
        # Before the others are removed: an interruption leaves records twice, and loses none.
        self._write(0, [json.dumps(record) for record in records])
        for number in others:
            self._storage.delete(self._file(number))
        self._number = None

    def _file(self, number: int) -> str:
        return f"{self._stem}-{number:05d}.{self._suffix}" if number else self._name

    def _numbers(self) -> list[int]:
        form = re.compile(rf"{re.escape(self._stem)}(?:-(\d+))?\.{re.escape(self._suffix)}")
        found = map(form.fullmatch, self._storage.files(suffix=f".{self._suffix}"))
        return sorted(int(match[1] or 0) for match in found if match)

    def _records(self, number: int) -> list[Any]:
        try:
            return [json.loads(line) for line in self._lines(number)]
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(
                f"{self._storage.place(self._file(number))} is damaged, or another program wrote it: {error}"
            ) from error

    def _lines(self, number: int) -> list[str]:
        return self._storage.read_bytes(self._file(number)).decode().splitlines()

    def _write(self, number: int, lines: list[str]) -> None:
        self._storage.write_bytes(self._file(number), "".join(f"{line}\n" for line in lines).encode())
