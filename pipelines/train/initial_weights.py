"""Weights from elsewhere: a checkpoint folder of ours, or a file of the published implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.clip.loading import read_checkpoint
from hbi_models.configs import RetrievalConfig
from hbi_models.published_weights import estimator_from_published, retrieval_from_published
from hbi_models.retrieval import RetrievalModel
from pipelines.storage import Storage
from pipelines.train.checkpoints import DESCRIPTION, load_model, load_weights, without_pretraining

_PUBLISHED_SUFFIXES = (".bin", ".pt", ".pth")


def is_published_file(checkpoint: str) -> bool:
    """Whether ``checkpoint`` names a file as the published code writes it (``pytorch_model.bin.3``)."""
    return any(suffix in Path(checkpoint).suffixes for suffix in _PUBLISHED_SUFFIXES)


def initialise_from(checkpoint: str, model: RetrievalModel, scratch: Path) -> None:
    """Fills ``model`` from ``checkpoint``, strictly; the teacher network alone may be on one side only.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit the model; the message lists what is missing and left over.
    """
    if is_published_file(checkpoint):
        path = _local_file(checkpoint, scratch)
        model.load_state_dict(retrieval_from_published(read_checkpoint(path), model.state_dict().keys()))
    else:
        load_weights(_folder(checkpoint).download("", scratch), model, optional="teacher.")


def initialise_estimator_from(checkpoint: str, model: InteractionEstimator, scratch: Path) -> None:
    """Fills an estimator from ``checkpoint``, strictly.

    Raises:
        FileNotFoundError, ValueError: as :func:`initialise_from`.
    """
    if is_published_file(checkpoint):
        model.load_state_dict(estimator_from_published(read_checkpoint(_local_file(checkpoint, scratch))))
    else:
        load_weights(_folder(checkpoint).download("", scratch), model)


def load_checkpoint(checkpoint: str, config: RetrievalConfig, scratch: Path) -> RetrievalModel:
    """The model of ``checkpoint``: ours with its own configuration, a published one with ``config``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it does not fit.
    """
    if is_published_file(checkpoint):
        # A teacher is of no use in evaluation, so the checkpoint's is left out.
        game = replace(config.game, teacher="exact")
        model = RetrievalModel(without_pretraining(replace(config, game=game)))
        initialise_from(checkpoint, model, scratch)
        return model.eval()
    return load_model(_folder(checkpoint), scratch)


def _folder(checkpoint: str) -> Storage:
    folder = Storage(checkpoint)
    if not folder.exists(DESCRIPTION):
        raise FileNotFoundError(
            f"{checkpoint} is neither a folder with {DESCRIPTION} nor a published file "
            f"({', '.join(_PUBLISHED_SUFFIXES)}); give one of the two"
        )
    return folder


def _local_file(uri: str, scratch: Path) -> Path:
    folder, name = uri.rsplit("/", 1) if "/" in uri else (".", uri)
    storage = Storage(folder)
    if storage.is_local:
        path = Path(storage.path(name))
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint file {path}")
        return path
    path = scratch / name
    path.write_bytes(storage.read_bytes(name))
    return path
