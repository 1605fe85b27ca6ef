"""Checkpoint folders: weights as safetensors with a JSON config, and all that resuming needs.

    model.safetensors   weights
    model.json          kind of the model and its configuration
    training.pt         optimizer and schedule (tensors and plain values only)
    position.json       epoch, step in the epoch, step
    curve.jsonl         every point of every curve up to there

Nothing is unpickled: ``training.pt`` is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hbi_models.configs import RetrievalConfig, VideoQAConfig
from hbi_models.retrieval import RetrievalModel
from hbi_models.video_qa import VideoQAModel
from pipelines.stages import plain
from pipelines.storage import DamagedFileError, Storage, StorageError
from pipelines.train.history import Point, from_record, to_record
from pipelines.train.layout import DESCRIPTION

WEIGHTS, TRAINING, POSITION, CURVE = "model.safetensors", "training.pt", "position.json", "curve.jsonl"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training run stands; the next step to do is ``step_in_epoch`` of ``epoch``."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r:.40}; a number of 0 or more is needed")


def save_model(folder: Path, model: nn.Module, *, kind: str, config: Any) -> None:
    """Writes weights and configuration of ``model`` to ``folder``.

    Raises:
        StorageError: they could not be written.
    """
    weights = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    with _writing(folder):
        save_file(weights, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps({"kind": kind, "config": plain(config)}, indent=2) + "\n")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Names the place of a checkpoint that cannot be written, which the libraries' own errors do not."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(
            f"cannot write a checkpoint to {folder}: {error}. If no space is left there, make room or let TMPDIR name "
            "another place, and run the same command again: it goes on from the checkpoint before"
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


def load_weights(folder: Path, model: nn.Module, *, optional: str | None = None) -> None:
    """Fills ``model`` from ``folder``, strictly but for names that start with ``optional``, if given.

    Raises:
        DamagedFileError: the weights cannot be read.
        ValueError: names or shapes differ; the message lists them.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, TypeError, LookupError) as error:
        raise DamagedFileError(f"{folder / WEIGHTS} cannot be read, it is damaged: {error}") from error
    fill(model, weights, source=str(folder), optional=optional)


def fill(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, optional: str | None = None) -> None:
    """Puts ``weights`` into ``model``, strictly but for names that start with ``optional``, if given.

    Raises:
        ValueError: names or shapes differ; the message lists them and names ``source``.
    """
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
            f"the weights in {source} do not fit the configured model: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}. "
            "Use the configuration that the checkpoint was trained with"
        )
    model.load_state_dict({**own, **shared})


def config_from_plain(kind: type, document: Mapping[str, Any], *, place: str) -> Any:
    """The frozen dataclass ``kind`` from its JSON form, which was read in ``place``.

    Raises:
        ValueError: a setting is unknown, missing or out of range.
    """
    try:
        return _config(kind, document)
    except ValueError as error:
        raise ValueError(f"{place} cannot be used: {error}") from error


def _config(kind: type, document: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    types = get_type_hints(kind)
    values = {}
    for name, value in document.items():
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            value = _config(types[name], value)  # type: ignore[arg-type]
        values[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[name], types[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value!r:.40}; {types[name]} is needed")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{kind.__name__} is incomplete: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` has the type of a setting; a whole number is also a real one, a bool neither."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return value in choices
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(choices) and all(map(_fits, value, choices))
    if choices:
        return any(_fits(value, choice) for choice in choices)
    if hint in (int, float):
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, hint)


def load_model(storage: Storage, scratch: Path) -> RetrievalModel:
    """The retrieval model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it holds another kind of model.
    """
    folder, document = _described(storage, scratch, "retrieval")
    config: RetrievalConfig = config_from_plain(RetrievalConfig, document, place=storage.place(DESCRIPTION))
    model = RetrievalModel(without_pretraining(config))
    load_weights(folder, model)
    return model.eval()


def load_video_qa(storage: Storage, scratch: Path) -> VideoQAModel:
    """The question answering model whose checkpoint folder ``storage`` is.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    folder, document = _described(storage, scratch, "video_qa")
    config: VideoQAConfig = config_from_plain(VideoQAConfig, document, place=storage.place(DESCRIPTION))
    model = VideoQAModel(replace(config, encoder=without_pretraining(config.encoder)))
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
    return replace(config, clip=replace(config.clip, pretrained=None))


def save_training(
    folder: Path, *, optimizer: torch.optim.Optimizer, schedule: Mapping[str, Any], position: Position
) -> None:
    """Writes what resuming needs besides the weights.

    Raises:
        StorageError: it could not be written.
    """
    with _writing(folder):
        torch.save({"optimizer": optimizer.state_dict(), "schedule": dict(schedule)}, folder / TRAINING)
        (folder / POSITION).write_text(json.dumps(asdict(position)) + "\n")


def load_training(folder: Path, *, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], Position]:
    """Fills ``optimizer`` and returns the schedule's state and the position.

    Raises:
        DamagedFileError: they cannot be read, or are another optimizer's.
    """
    try:
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        return state["schedule"], Position(**json.loads((folder / POSITION).read_bytes()))
    # A damaged pickle is a program with wrong instructions: there is no telling what they raise.
    except Exception as error:
        raise DamagedFileError(f"the checkpoint in {folder} cannot be resumed from, it is damaged: {error}") from error


def save_curve(folder: Path, curve: Sequence[Point]) -> None:
    """Writes the points that were reported so far.

    Raises:
        StorageError: they could not be written.
    """
    with _writing(folder):
        (folder / CURVE).write_text("".join(f"{json.dumps(to_record(point))}\n" for point in curve))


def load_curve(folder: Path) -> list[Point]:
    """The points of the curves up to the checkpoint.

    Raises:
        DamagedFileError: they cannot be read.
    """
    try:
        return [from_record(json.loads(line)) for line in (folder / CURVE).read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"the checkpoint in {folder} cannot be resumed from, it is damaged: {error}") from error
