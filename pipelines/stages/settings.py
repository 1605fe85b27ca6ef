"""Which settings of a section count in a fingerprint, as the declarations of the fields say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hbi_models.config_fields import Use, content_named_by, counts_for, is_absent
from pipelines.models.folder import (
    ENCODER_FILES,
    SELECTION,
    WEIGHTS,
    description_file,
    is_published_file,
    model_folder,
)
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.contents import content_digest
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri


def counting(section: Any, *uses: Use) -> dict[str, Any]:
    """The settings of ``section`` that can change a result, as JSON types. Paths are replaced by digests of their
    contents.

    Args:
        section: a frozen dataclass of settings.
        uses: what the model of the section, if it has one, is used for; settings that do not matter for that are left
            out.

    Raises:
        FileNotFoundError: a setting names a checkpoint that is not there.
    """
    counted = ((item, getattr(section, item.name)) for item in fields(section) if counts_for(item, uses))
    return {item.name: _value(value, item, uses) for item, value in counted if not is_absent(item, value)}


def _value(value: Any, item: Field[Any], uses: Collection[Use]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return counting(value, *uses)
    names = content_named_by(item)
    if value is None or names is None:
        return plain(value)
    if names == "checkpoint":
        return checkpoint_digest(value)
    return _content(content_digest(value)) if Path(value).is_file() else value


def checkpoint_digest(checkpoint: str) -> str:
    """A digest of the contents of a checkpoint: of the bytes of a file, or of weights and description in a folder of
    ours.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if is_published_file(checkpoint):
        return _content(content_digest(checkpoint))
    folder = model_folder(checkpoint)
    names = [str(description_file(folder)), WEIGHTS, *filter(folder.exists, ENCODER_FILES)]
    return _content([content_digest(join_uri(checkpoint, name)) for name in names])


def given_model(checkpoint: str, config: Any) -> dict[str, Any]:
    """What an evaluation of ``checkpoint`` depends on. For a published file this includes ``config``, which is not in
    the file.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    known = {"checkpoint": checkpoint_digest(checkpoint)}
    if is_published_file(checkpoint):
        return {**known, "model": counting(config, "evaluation")}
    # Figures say how their checkpoint was chosen.
    if Storage(checkpoint).exists(SELECTION):
        known["selection"] = content_digest(join_uri(checkpoint, SELECTION))
    return known


def _content(digests: str | list[str]) -> str:
    # A plan shows old and new values; the word says that this one is no path.
    return f"content {digest(digests)}"
