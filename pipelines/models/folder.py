"""The files of a checkpoint and what they say, for modules that must not load PyTorch."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipelines.datasets.answers import ANSWERS_JSON, Vocabulary
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name

_PUBLISHED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def is_published_file(checkpoint: str) -> bool:
    """Whether ``checkpoint`` names a file as the published code writes it (``pytorch_model.bin.3``)."""
    return any(suffix in PurePosixPath(last_name(checkpoint)).suffixes for suffix in _PUBLISHED_SUFFIXES)


def model_folder(checkpoint: str) -> Storage:
    """The folder of a model that this project trained.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Storage(checkpoint)
    if not folder.exists(DESCRIPTION):
        raise FileNotFoundError(
            f"{checkpoint} is neither a folder with {DESCRIPTION} nor a published file "
            f"({', '.join(_PUBLISHED_SUFFIXES)}); give one of the two"
        )
    return folder


def kind_of_model(folder: Storage) -> str:
    """What kind of model a folder of ours holds: ``retrieval``, ``video_qa`` or ``estimator``."""
    return str(folder.read_json(DESCRIPTION)["kind"])


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

DESCRIPTION = "model.json"
"""File of a checkpoint: kind of the model and its configuration."""

ZERO_SHOT = "zero_shot"
"""Kind of a pretrained encoder alone, as an index made without training keeps it."""

WEIGHTS = "model.safetensors"
"""File of a checkpoint: its weights."""

FRAMES_JSON = "frames.json"
"""File of a model: how the videos that it was trained on were sampled and decoded."""

SELECTION = "selection.json"
"""File of a model: how its checkpoint was chosen among those of its training."""

TOKENIZER = "tokenizer.json"
"""File of a model that does not read CLIP's own tokens: what turns captions into its tokens."""
