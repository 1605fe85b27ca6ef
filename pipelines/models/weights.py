"""A model on disk: weights as safetensors, and a JSON description."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hbi_models.clip.adaptation import merged_state_dict
from hbi_models.clip.backbone import ClipBackbone
from hbi_models.clip.codecs import FileCodec
from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from hbi_models.zero_shot import ZeroShotModel
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.models.folder import DESCRIPTION, TOKENIZER, WEIGHTS, ZERO_SHOT
from pipelines.recipe.reading import config_from_plain
from pipelines.workspace.artifact import plain
from pipelines.workspace.errors import DamagedFileError, StorageError
from pipelines.workspace.storage import Storage

LEFT_OUT = "left_out"
"""In the description of a checkpoint made during a training: names of the weights that it does not hold."""

# By default cuDNN rounds the inputs of float32 convolutions to 10 bits (TF32). This is turned off, so that float32
# means float32 on every device. It is done here because every user of a model imports this module.
torch.backends.cudnn.allow_tf32 = False


def save_model(folder: Path, model: nn.Module, *, kind: str, config: Any, leave_out: Collection[str] = ()) -> None:
    """Writes weights and configuration of ``model`` to ``folder``; low-rank updates are added to what they change.

    Weights that are to be left out are not written.

    Raises:
        StorageError: they could not be written.
    """
    kept = {name: value for name, value in merged_state_dict(model).items() if name not in leave_out}
    weights = {name: value.detach().contiguous().cpu() for name, value in kept.items()}
    description = {"kind": kind, "config": plain(config), **({LEFT_OUT: sorted(leave_out)} if leave_out else {})}
    with writing(folder):
        save_file(weights, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        for module in model.modules():
            if isinstance(module, ClipBackbone) and isinstance(module.codec, FileCodec):
                (folder / TOKENIZER).write_text(module.codec.document, encoding="utf-8")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Adds the folder to errors of writing a checkpoint, because the libraries' own messages do not name it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(
            f"cannot write a checkpoint to {folder}: {error}. If no space is left there, make room or let TMPDIR name "
            "another place, and run the same command again: it goes on from the last checkpoint"
        ) from error


def read_description(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Kind and configuration of the model in ``folder``.

    Raises:
        FileNotFoundError: the folder holds no model.
        DamagedFileError: its description cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {DESCRIPTION}; give the folder of a checkpoint that this project wrote "
            f"(it holds {WEIGHTS} and {DESCRIPTION})"
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


def load_weights(
    folder: Path, model: nn.Module, *, optional: str | None = None, left_out: Collection[str] = ()
) -> None:
    """Fills ``model`` from ``folder``, strictly except for names that start with ``optional``, if given.

    Weights that were ``left_out`` stay as they are in ``model``.

    Raises:
        DamagedFileError: the weights cannot be read.
        ValueError: names or shapes differ; the message lists them.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, TypeError, LookupError) as error:
        raise DamagedFileError(f"{folder / WEIGHTS} cannot be read, it is damaged: {error}") from error
    fill(model, weights, source=str(folder), optional=optional, left_out=left_out)


def fixed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the weights that no training changes, because they belong to a frozen encoder.

    A model that is built again for the same training has the same ones.
    """
    names: frozenset[str] = getattr(model, "fixed_weights", frozenset())
    return names


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    optional: str | None = None,
    left_out: Collection[str] = (),
) -> None:
    """Puts ``weights`` into ``model``, strictly except for names that start with ``optional``, if given.

    Weights that were ``left_out`` stay as they are in ``model``.

    Raises:
        ValueError: names or shapes differ; the message lists them and names ``source``.
    """
    own = model.state_dict()

    def required(name: str) -> bool:
        return optional is None or not name.startswith(optional)

    problems = [f"missing {name}" for name in own if name not in weights and name not in left_out and required(name)]
    problems += [f"left over {name}" for name in weights if name not in own and required(name)]
    shared = {name: weight for name, weight in weights.items() if name in own}
    problems += [
        f"{name} is {tuple(weight.shape)}, needed {tuple(own[name].shape)}"
        for name, weight in shared.items()
        if weight.shape != own[name].shape
    ]
    if problems:
        raise ValueError(
            f"the weights in {source} do not fit the configured model: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}. "
            "Use the configuration that the checkpoint was trained with"
        )
    model.load_state_dict({**own, **shared})


def load_model(storage: Storage, scratch: Path) -> RetrievalModel:
    """The retrieval model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it holds another kind of model.
    """
    folder, document = _described(storage, scratch, "retrieval")
    config: RetrievalConfig = config_from_plain(RetrievalConfig, document, place=storage.place(DESCRIPTION))
    model = RetrievalModel(stored(config, folder))
    load_weights(folder, model)
    return model.eval()


def load_encoder(storage: Storage, scratch: Path) -> RetrievalModel | ZeroShotModel:
    """The model in the folder ``storage`` that a search uses: a trained retrieval model, or a pretrained encoder alone.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    folder = storage.download("", scratch)
    kind, document = read_description(folder)
    if kind != ZERO_SHOT:
        return load_model(storage, scratch)
    config: ZeroShotConfig = config_from_plain(ZeroShotConfig, document, place=storage.place(DESCRIPTION))
    model = ZeroShotModel(config.with_clip(stored_clip(config.clip, folder)))
    load_weights(folder, model)
    return model.eval()


def load_video_qa(storage: Storage, scratch: Path) -> VideoQAModel:
    """The question answering model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    folder, document = _described(storage, scratch, "video_qa")
    config: VideoQAConfig = config_from_plain(VideoQAConfig, document, place=storage.place(DESCRIPTION))
    model = VideoQAModel(replace(config, encoder=stored(config.encoder, folder)))
    load_weights(folder, model)
    return model.eval()


def _described(storage: Storage, scratch: Path, kind: str) -> tuple[Path, Mapping[str, Any]]:
    folder = storage.download("", scratch)
    found, document = read_description(folder)
    if found != kind:
        raise ValueError(f"{storage.uri} holds a model of kind {found!r}; a model of kind {kind!r} is needed")
    return folder, document


def without_pretraining(config: RetrievalConfig) -> RetrievalConfig:
    """``config`` for a model whose weights come from a checkpoint: CLIP's own are not loaded."""
    # The pixel statistics of CLIP's weights hold for the checkpoint, too.
    return replace(config, clip=replace(with_pixel_statistics(config.clip), pretrained=None))


def stored(config: RetrievalConfig, folder: Path) -> RetrievalConfig:
    """``config`` for the model in ``folder``, which holds its weights and, if that is not CLIP's, its tokenizer."""
    return replace(config, clip=stored_clip(config.clip, folder))


def stored_clip(clip: ClipConfig, folder: Path) -> ClipConfig:
    """``clip`` for the model in ``folder``, likewise."""
    tokenizer = folder / TOKENIZER
    found = replace(clip, tokenizer=str(tokenizer)) if tokenizer.is_file() else clip
    # What CLIP's tag says about pixels holds for the checkpoint, too.
    return replace(with_pixel_statistics(found), pretrained=None)
