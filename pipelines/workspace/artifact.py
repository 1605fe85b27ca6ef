"""What a finished stage left: a folder, and the document that committed it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hbi_models.config_fields import is_absent
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.storage import Storage

ARTIFACT = "artifact.json"
FORCED = "forced.json"
"""Marks a stage that was asked to do its work again. If there is no artifact, that was interrupted."""
_FINGERPRINT_LENGTH = 16  # hexadecimal digits, 64 bits
_VERSIONED = ("torch", "ray", "pyarrow", "open_clip_torch", "decord", "av", "numpy", "hbi-on-ray")
Counts = Mapping[str, int | float]


def plain(value: Any) -> Any:
    """``value`` as JSON types; dataclasses become mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {item.name: plain(content) for item, content in values if not is_absent(item, content)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def digest(document: Any) -> str:
    """Hex digest of a JSON-like document, whatever the order of its keys."""
    text = json.dumps(plain(document), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


@dataclass(frozen=True)
class Artifact:
    """What a finished stage left: a folder, and the document that committed it."""

    stage: str
    fingerprint: str
    storage: Storage
    document: Mapping[str, Any]

    @property
    def counts(self) -> Counts:
        """Rows, errors and other numbers that the stage reported."""
        counts: Counts = self.document["counts"]
        return counts


def read_document(output: Storage) -> Mapping[str, Any]:
    """The document that committed the artifact in ``output``.

    Raises:
        FileNotFoundError: there is no such document.
        DamagedFileError: the document is not one that this project writes.
    """
    document = output.read_json(ARTIFACT)
    if not isinstance(document, Mapping) or not {"version", "finished_at"} <= document.keys():
        raise DamagedFileError(f"{output.place(ARTIFACT)} is not the document of a finished stage")
    if not all(isinstance(document.get(name), Mapping) for name in ("settings", "inputs", "counts")):
        raise DamagedFileError(f"{output.place(ARTIFACT)} is not the document of a finished stage")
    return document


def discard(output: Storage) -> None:
    """Removes what a stage left, its documents first, so that an interruption never leaves something that looks
    finished."""
    # FORCED goes first: without an artifact it marks forced work that was interrupted, and that is to go on.
    for name in (FORCED, ARTIFACT, ""):
        output.delete(name)


def left_by_force(output: Storage) -> bool:
    """Whether a stage was asked to do its work again, and was interrupted."""
    return output.exists(FORCED) and not output.exists(ARTIFACT)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
