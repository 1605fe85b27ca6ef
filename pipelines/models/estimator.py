"""The estimator as a trained model: making and loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hbi_models.banzhaf.estimator import InteractionEstimator
from hbi_models.config_reading import config_from_plain
from pipelines.models.folder import DESCRIPTION
from pipelines.models.initial_weights import initialise_estimator_from
from pipelines.models.weights import load_weights, read_description
from pipelines.workspace.storage import Storage


@dataclass(frozen=True)
class EstimatorConfig:
    """The configuration in a checkpoint of the estimator."""

    channels: int


def make_estimator(channels: int, init_checkpoint: str | None) -> InteractionEstimator:
    """A new estimator, or one that starts from a checkpoint of ours or a published one."""
    model = InteractionEstimator(channels)
    if init_checkpoint is not None:
        with TemporaryDirectory() as scratch:
            initialise_estimator_from(init_checkpoint, model, Path(scratch))
    return model


def load_estimator(storage: Storage, scratch: Path) -> InteractionEstimator:
    """The estimator whose checkpoint folder ``storage`` is."""
    folder = storage.download("", scratch)
    kind, document = read_description(folder)
    if kind != "estimator":
        raise ValueError(f"{storage.uri} holds a model of kind {kind!r}; an estimator is needed")
    config: EstimatorConfig = config_from_plain(EstimatorConfig, document, place=storage.place(DESCRIPTION))
    model = InteractionEstimator(config.channels)
    load_weights(folder, model)
    return model.eval()
