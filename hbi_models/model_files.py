"""The files of a stored model and what its description says; imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
"""File of a model: its weights."""

DESCRIPTION = "model.json"
"""File of a model: its kind and its configuration."""

HUB_DESCRIPTION = "config.json"
"""The same in a folder that was exported for the Hugging Face hub."""

TOKENIZER = "tokenizer.json"
"""File of a model that does not read CLIP's own tokens: what turns captions into its tokens."""

ARCHITECTURE = "architecture.json"
"""File of a model whose CLIP has no name that open_clip or this project knows: its architecture."""


class DamagedFileError(ValueError):
    """A file is there, and its content is not what this project writes; the message names it."""


def read_description(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Returns kind and configuration of the model in ``folder``.

    Raises:
        FileNotFoundError: The folder holds no model.
        DamagedFileError: Its description cannot be read.
    """
    path = next((folder / name for name in (DESCRIPTION, HUB_DESCRIPTION) if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} holds no {DESCRIPTION}; give the folder of a checkpoint that this project wrote "
            f"(it holds {WEIGHTS} and {DESCRIPTION}, or {HUB_DESCRIPTION} where it was exported)"
        )
    try:
        document = json.loads(path.read_bytes())
        kind, config = str(document["kind"]), document["config"]
        if not isinstance(config, Mapping):
            raise TypeError(f"config is {config!r:.40}")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedFileError(
            f"{path} is not a model's description as this project writes it: {error!r:.200}"
        ) from error
    return kind, config
