"""The files of a checkpoint and what they say, for modules that must not load PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from hbi_models.model_files import ARCHITECTURE as ARCHITECTURE
from hbi_models.model_files import DESCRIPTION as DESCRIPTION
from hbi_models.model_files import HUB_DESCRIPTION as HUB_DESCRIPTION
from hbi_models.model_files import TOKENIZER as TOKENIZER
from hbi_models.model_files import WEIGHTS as WEIGHTS
from pipelines.datasets.answers import ANSWERS_JSON, Vocabulary
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name

_PUBLISHED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_published_file(checkpoint: str) -> bool:
    """Whether ``checkpoint`` names a file as the published code writes it (``pytorch_model.bin.3``)."""
    return any(suffix in PurePosixPath(last_name(checkpoint)).suffixes for suffix in _PUBLISHED_SUFFIXES)


def model_folder(checkpoint: str) -> Storage:
    """The folder of a model that this project trained or exported.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Storage(checkpoint)
    if description_file(folder) is None:
        raise FileNotFoundError(
            f"{checkpoint} is neither a folder with {DESCRIPTION} nor a published file "
            f"({', '.join(_PUBLISHED_SUFFIXES)}); give one of the two"
        )
    return folder


def description_file(folder: Storage) -> str | None:
    """The name of the file that describes the model in ``folder``; None = there is none."""
    return next((name for name in (DESCRIPTION, HUB_DESCRIPTION) if folder.exists(name)), None)


def description_of(folder: Storage) -> Mapping[str, Any]:
    """What kind of model a folder of ours holds, and its configuration.

    Raises:
        DamagedFileError: its description is not one that this project writes.
    """
    name = description_file(folder) or DESCRIPTION
    document = folder.read_json(name)
    if not isinstance(document, Mapping) or "kind" not in document:
        raise DamagedFileError(f"{folder.place(name)} is not a model's description as this project writes it")
    return document


def kind_of_model(folder: Storage) -> str:
    """What kind of model a folder of ours holds: ``retrieval``, ``video_qa`` or ``estimator``.

    Raises:
        DamagedFileError: as :func:`description_of`.
    """
    return str(description_of(folder)["kind"])


def vocabulary_of(checkpoint: str) -> Vocabulary:
    """The answers of a question answering model that this project trained.

    Raises:
        FileNotFoundError: the folder does not hold them, or no model at all.
        ValueError: it holds another kind of model.
    """
    folder = model_folder(checkpoint)
    if (kind := kind_of_model(folder)) != "video_qa":
        raise ValueError(f"{checkpoint} holds a model of kind {kind!r}; a model of kind 'video_qa' is needed")
    if not folder.exists(ANSWERS_JSON):
        raise FileNotFoundError(
            f"{checkpoint} holds no {ANSWERS_JSON}; give the folder model of a finished training of question answering"
        )
    return Vocabulary.read(folder)


MODEL = "model"
"""Folder that holds the chosen checkpoint."""

ZERO_SHOT = "zero_shot"
"""Kind of a pretrained encoder alone, as an index made without training keeps it."""

FRAMES_JSON = "frames.json"
"""File of a model: how the videos that it was trained on were sampled and decoded."""

SELECTION = "selection.json"
"""File of a model: how its checkpoint was chosen among those of its training."""

ENCODER_FILES = (TOKENIZER, ARCHITECTURE)
"""Files that a model has only where its encoder is not one of CLIP's that open_clip or this project knows by name."""

LEFT_OUT = "left_out"
"""In the description of a checkpoint made during a training: names of the weights that it does not hold."""
