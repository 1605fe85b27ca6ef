"""A model on disk: weights as safetensors, and a JSON description."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from hbi_models.clip.adaptation import merged_state_dict
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.codecs import FileCodec
from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.configs import RetrievalConfig
from hbi_models.model_files import read_description as read_description
from hbi_models.retrieval import RetrievalModel
from hbi_models.stored import fill as fill
from hbi_models.stored import load_weights as load_weights
from hbi_models.video_qa import VideoQAModel
from hbi_models.zero_shot import ZeroShotModel
from pipelines.models.folder import ARCHITECTURE, DESCRIPTION, LEFT_OUT, TOKENIZER, WEIGHTS, ZERO_SHOT
from pipelines.workspace.artifact import plain
from pipelines.workspace.errors import StorageError
from pipelines.workspace.storage import Storage

# By default cuDNN rounds the inputs of float32 convolutions to 10 bits (TF32). This is turned off, so that float32
# means float32 on every device. It is done here because every user of a model imports this module.
torch.backends.cudnn.allow_tf32 = False


def save_model(folder: Path, model: nn.Module, *, kind: str, config: Any, leave_out: Collection[str] = ()) -> None:
    """Writes weights and configuration of ``model`` to ``folder``; low-rank updates are added to what they change.

    The weights that ``leave_out`` names are not written.

    Raises:
        StorageError: they could not be written.
    """
    kept = {name: value for name, value in merged_state_dict(model).items() if name not in leave_out}
    # safetensors refuses tensors that are not contiguous.
    weights = {name: value.detach().contiguous().cpu() for name, value in kept.items()}
    description = {"kind": kind, "config": plain(config), **({LEFT_OUT: sorted(leave_out)} if leave_out else {})}
    with writing(folder):
        save_file(weights, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        for module in (each for each in model.modules() if isinstance(each, ClipBackbone)):
            if isinstance(module.codec, FileCodec):
                (folder / TOKENIZER).write_text(module.codec.document, encoding="utf-8")
            if module.architecture is not None:
                (folder / ARCHITECTURE).write_text(module.architecture, encoding="utf-8")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Adds the folder to errors of writing a checkpoint, because the libraries' own messages do not name it."""
    try:
        yield
    # ``torch.save`` raises RuntimeError where the disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(
            f"cannot write a checkpoint to {folder}: {error}. If no space is left there, make room or let TMPDIR name "
            "another place, and run the same command again: it goes on from the last checkpoint"
        ) from error


def fixed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the weights that no training changes, because they belong to a frozen encoder.

    A model that is built again for the same training has the same ones.
    """
    names: frozenset[str] = getattr(model, "fixed_weights", frozenset())
    return names


def load_model(storage: Storage, scratch: Path) -> RetrievalModel:
    """The retrieval model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it holds another kind of model.
    """
    return RetrievalModel.from_folder(storage.download("", scratch), name=storage.place())


def load_encoder(storage: Storage, scratch: Path) -> RetrievalModel | ZeroShotModel:
    """The model in the folder ``storage`` that a search uses: a trained retrieval model, or a pretrained encoder alone.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    folder = storage.download("", scratch)
    kind, _ = read_description(folder)
    if kind == ZERO_SHOT:
        return ZeroShotModel.from_folder(folder, name=storage.place())
    return RetrievalModel.from_folder(folder, name=storage.place())


def load_video_qa(storage: Storage, scratch: Path) -> VideoQAModel:
    """The question answering model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    return VideoQAModel.from_folder(storage.download("", scratch), name=storage.place())


def without_pretraining(config: RetrievalConfig) -> RetrievalConfig:
    """``config`` for a model whose weights come from a checkpoint: CLIP's own are not loaded."""
    # The pixel statistics of CLIP's weights hold for the checkpoint, too.
    return config.with_clip(replace(with_pixel_statistics(config.clip), pretrained=None))
