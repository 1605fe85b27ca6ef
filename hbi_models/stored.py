"""Models in a folder, or in the layout of such a folder on the Hugging Face hub: safetensors and a JSON description.

    model = RetrievalModel.from_pretrained("folder")      # or "owner/name" on the hub or in its cache

Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.pixels import with_pixel_statistics
from hbi_models.config_reading import config_from_plain
from hbi_models.model_files import ARCHITECTURE, TOKENIZER, WEIGHTS, DamagedFileError, read_description

# The checks of shapes in the tests do not know typing.Self.
Model = TypeVar("Model", bound="StoredModel")


class StoredModel(nn.Module):
    """A model that a folder holds, made from settings that have a ``clip`` and ``with_clip``."""

    kind: ClassVar[str]
    """What its description calls it."""
    settings: ClassVar[type]
    """The dataclass of its settings."""

    @classmethod
    def from_pretrained(cls: type[Model], place: str | Path, *, revision: str | None = None) -> Model:
        """Returns the model in ``place``, on the CPU and in evaluation mode.

        Args:
            place: A folder, or the id ``owner/name`` of a model on the Hugging Face hub. What is in the hub's cache
                on this machine needs no network.
            revision: Of the hub's model: a branch, a tag or a commit.

        Raises:
            FileNotFoundError: The folder holds no model.
            ValueError: There is no such place, it holds another kind of model, or the model is damaged.
        """
        return cls.from_folder(pretrained_folder(place, revision=revision), name=str(place))

    @classmethod
    def from_folder(cls: type[Model], folder: Path, *, name: str) -> Model:
        """Returns the model in ``folder``, which messages call ``name``.

        Raises:
            FileNotFoundError, ValueError: As :meth:`from_pretrained`.
        """
        kind, document = read_description(folder)
        if kind != cls.kind:
            raise ValueError(f"{name} holds a model of kind {kind!r}; a model of kind {cls.kind!r} is needed")
        config = config_from_plain(cls.settings, document, place=f"the description in {name}")
        model = cls(config.with_clip(stored_clip(config.clip, folder)))
        load_weights(folder, model)
        return model.eval()


def pretrained_folder(place: str | Path, *, revision: str | None = None) -> Path:
    """Returns the folder of a model on this machine; one of the hub is fetched into the hub's cache.

    Raises:
        ValueError: There is no such folder, and no such model on the hub or in its cache.
    """
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), revision=revision, allow_patterns=["*.json", WEIGHTS]))
    # Errors of the hub, of its client and of the network have no class in common.
    except Exception as error:
        raise ValueError(
            f"{place} is no folder, and as a model of the Hugging Face hub it is not in the cache of this machine and "
            f"cannot be fetched ({type(error).__name__}). Give a folder, or connect to the network once"
        ) from error


def stored_clip(clip: ClipConfig, folder: Path) -> ClipConfig:
    """Returns ``clip`` for the model in ``folder``, which brings its weights.

    Where they are not CLIP's own, it also brings its tokenizer and its architecture.
    """
    tokenizer, architecture = folder / TOKENIZER, folder / ARCHITECTURE
    found = replace(clip, tokenizer=str(tokenizer)) if tokenizer.is_file() else clip
    found = replace(found, architecture=str(architecture)) if architecture.is_file() else found
    # What CLIP's tag says about pixels holds for the checkpoint, too.
    return replace(with_pixel_statistics(found), pretrained=None)


def load_weights(
    folder: Path, model: nn.Module, *, optional: str | None = None, left_out: Collection[str] = ()
) -> None:
    """Fills ``model`` from ``folder``, strictly except for names that start with ``optional``, if given.

    Weights that were ``left_out`` stay as they are in ``model``.

    Raises:
        DamagedFileError: The weights cannot be read.
        ValueError: Names or shapes differ; the message lists them.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, TypeError, LookupError) as error:
        raise DamagedFileError(f"{folder / WEIGHTS} cannot be read, it is damaged: {error}") from error
    fill(model, weights, source=str(folder), optional=optional, left_out=left_out)


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
        ValueError: Names or shapes differ; the message lists them and names ``source``.
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
    # Strict loading needs every name; those that may be missing keep the values of the model.
    model.load_state_dict({**own, **shared})
