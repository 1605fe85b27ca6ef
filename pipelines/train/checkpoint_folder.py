"""The best and the latest checkpoint of a training that runs without Ray Train, in a folder at any URI."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pipelines.workspace.storage import Storage

_INDEX = "index.json"


class CheckpointFolder:
    """Keeps two checkpoints: the best by score, of equal ones the last, and the latest, to go on from.

    ``index.json`` names them and is written after their files, so a training that is killed at any point finds whole
    checkpoints. Checkpoints that the index no longer names are removed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def latest(self, scratch: Path) -> Path | None:
        """The folder of the latest checkpoint, if there is one; a download goes to ``scratch``."""
        index = self._index()
        return self._storage.download(index["latest"], scratch) if index else None

    def best(self, scratch: Path) -> tuple[Path, float]:
        """The folder and the score of the best checkpoint.

        Raises:
            FileNotFoundError: no checkpoint was kept.
        """
        index = self._index()
        if not index:
            raise FileNotFoundError(f"{self._storage.uri} holds no checkpoint; the training has not validated yet")
        return self._storage.download(index["best"], scratch), float(index["score"])

    def keep(self, folder: Path, score: float) -> None:
        """Takes over the checkpoint in ``folder``."""
        index, name = self._index(), uuid.uuid4().hex
        self._storage.upload(folder, name)
        # Until the first epoch has ended all are unscored, and the newest of them stands for the best.
        if not index or score >= index["score"]:
            index = {"best": name, "score": score}
        self._storage.write_json(_INDEX, {**index, "latest": name})
        # Among them what was uploaded by a process that was killed before it wrote the index.
        for old in set(self._storage.folders()) - {index["best"], name}:
            self._storage.delete(old)

    def _index(self) -> dict[str, Any]:
        return dict(self._storage.read_json(_INDEX)) if self._storage.exists(_INDEX) else {}
