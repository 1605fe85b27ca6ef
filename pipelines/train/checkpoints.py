"""Checkpoint folders: weights as safetensors with a JSON config, and all that resuming needs.

    model.safetensors   weights
    model.json          kind of the model and its configuration
    training.pt         optimizer and schedule (tensors and plain values only)
    position.json       epoch, step in the epoch, step

Nothing is unpickled: ``training.pt`` is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.stages import plain
from pipelines.storage import Storage

WEIGHTS, DESCRIPTION, TRAINING, POSITION = "model.safetensors", "model.json", "training.pt", "position.json"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training run stands; the next step to do is ``step_in_epoch`` of ``epoch``."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


def save_model(folder: Path, model: nn.Module, *, kind: str, config: Any) -> None:
    """Writes weights and configuration of ``model`` to ``folder``."""
    weights = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps({"kind": kind, "config": plain(config)}, indent=2) + "\n")


def read_description(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Kind and configuration of the model in ``folder``.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {DESCRIPTION}; give the folder of a checkpoint that this project wrote "
            f"(it holds {WEIGHTS} and {DESCRIPTION})"
        )
    document = json.loads(path.read_text())
    return str(document["kind"]), document["config"]


def load_weights(folder: Path, model: nn.Module, *, optional: str | None = None) -> None:
    """Fills ``model`` from ``folder``, strictly but for names that start with ``optional``, if given.

    Raises:
        ValueError: names or shapes differ; the message lists them.
    """
    weights = load_file(folder / WEIGHTS)
    own = model.state_dict()

    def required(name: str) -> bool:
        return optional is None or not name.startswith(optional)

    problems = [f"missing {name}" for name in own if name not in weights and required(name)]
    problems += [f"left over {name}" for name in weights if name not in own and required(name)]
    shared = {name: weight for name, weight in weights.items() if name in own}
    problems += [
        f"{name} is {tuple(weight.shape)}, needed {tuple(own[name].shape)}"
        for name, weight in shared.items()
        if weight.shape != own[name].shape
    ]
    if problems:
        raise ValueError(
            f"the weights in {folder} do not fit the configured model: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}. "
            "Use the configuration that the checkpoint was trained with"
        )
    model.load_state_dict({**own, **shared})


def config_from_plain(kind: type, document: Mapping[str, Any]) -> Any:
    """The frozen dataclass ``kind`` from its JSON form.

    Raises:
        ValueError: a setting is unknown.
    """
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    types = get_type_hints(kind)
    values = {}
    for name, value in document.items():
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            value = config_from_plain(types[name], value)  # type: ignore[arg-type]
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def load_model(storage: Storage, scratch: Path) -> RetrievalModel:
    """The retrieval model whose checkpoint folder ``storage`` is.

    Raises:
        ValueError: the folder holds another kind of model.
    """
    folder = storage.download("", scratch)
    kind, document = read_description(folder)
    if kind != "retrieval":
        raise ValueError(f"{storage.uri} holds a model of kind {kind!r}; a retrieval model is needed")
    config: RetrievalConfig = config_from_plain(RetrievalConfig, document)
    model = RetrievalModel(without_pretraining(config))
    load_weights(folder, model)
    return model.eval()


def without_pretraining(config: RetrievalConfig) -> RetrievalConfig:
    """``config`` for a model whose weights come from a checkpoint: CLIP's own are not loaded."""
    return replace(config, clip=replace(config.clip, pretrained=None))


def save_training(
    folder: Path, *, optimizer: torch.optim.Optimizer, schedule: Mapping[str, Any], position: Position
) -> None:
    """Writes what resuming needs besides the weights."""
    torch.save({"optimizer": optimizer.state_dict(), "schedule": dict(schedule)}, folder / TRAINING)
    (folder / POSITION).write_text(json.dumps(asdict(position)) + "\n")


def load_training(folder: Path, *, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], Position]:
    """Fills ``optimizer`` and returns the schedule's state and the position."""
    state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return state["schedule"], Position(**json.loads((folder / POSITION).read_text()))
