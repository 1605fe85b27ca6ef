"""Architectures and weights of CLIP backbones, from open_clip or from local files.

Nothing is unpickled or run: state dicts are read with ``weights_only``, safetensors as such, and
of OpenAI's TorchScript archive only the weights.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hbi_models.clip.adaptation import choose_trained
from hbi_models.clip.backbone import TEXT_POOLS, ClipBackbone
from hbi_models.clip.codecs import Codec, file_codec
from hbi_models.clip.configs import ClipConfig
from hbi_models.clip.pixels import (
    ARCHITECTURES,
    CLIP_MEAN,
    CLIP_STD,
    PREPROCESSING,
    architecture_file,
    with_pixel_statistics,
)
from hbi_models.clip.tokenizer import CaptionTokenizer
from hbi_models.clip.torchscript import read_torchscript
from hbi_models.clip.transformers_names import from_transformers_clip, is_transformers_clip
from hbi_models.config_fields import require
from hbi_models.configs import RetrievalConfig
from hbi_models.weight_names import listed, without_wrappers

# Constants that OpenAI's archives store among the weights; no other release has them.
OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")

# Entries of checkpoints that the backbone does not need.
UNUSED_ENTRIES = (*OPENAI_CONSTANTS, "attn_mask", "text.attn_mask", "logit_bias")

_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    # The name in NumPy 2 and the name in NumPy 1.
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]

_DRAWING = {"Dropout": "p", "DropPath": "drop_prob", "PatchDropout": "prob"}
"""Modules of PyTorch, timm and open_clip that are random in training, with the attribute that holds their
probability."""

TEXT_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def load_clip(config: ClipConfig, weights: Path | None = None) -> ClipBackbone:
    """Returns the backbone in float32 on the CPU; without ``pretrained``, freshly initialised.

    ``weights`` is a file of :func:`save_clip` that holds what the tag ``pretrained`` names: neither a cache nor the
    network is asked then.

    Raises:
        ValueError: The architecture or the weights are unknown, do not fit each other, or the
            architecture is one whose words this project cannot read.
    """
    architecture = read_architecture(config.architecture)
    codec = file_codec(config, architecture["text_cfg"])
    tag = open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if config.pretrained else None
    if tag:
        # Before anything is downloaded.
        require_same_activation(architecture, quick_gelu=tag.get("quick_gelu", False), config=config)
    if weights is not None:
        backbone = build_clip(architecture, codec)
        load_weights(backbone, load_file(weights), config)
    elif tag:
        model = open_clip.create_model(config.architecture, pretrained=config.pretrained, precision="fp32")
        backbone = ClipBackbone(model, embedding_dim=architecture["embed_dim"], codec=codec)
    else:
        state = None if config.pretrained is None else read_weights_file(architecture, config)
        backbone = build_clip(architecture, codec)
        if state is not None:
            load_weights(backbone, state, config)
    if config.architecture.endswith(".json"):
        # A stored model takes the text along, because the path says nothing on another machine.
        backbone.architecture = Path(config.architecture).read_text(encoding="utf-8")
    resolved = with_pixel_statistics(config)
    backbone.pixel_mean, backbone.pixel_std = resolved.pixel_mean or CLIP_MEAN, resolved.pixel_std or CLIP_STD
    _draw_nothing(backbone)
    choose_trained(backbone, config)
    if config.gradient_checkpointing:
        backbone.checkpoint_gradients()
    return backbone


def _draw_nothing(backbone: ClipBackbone) -> None:
    """Turns off dropout and stochastic depth in the towers, which some architectures ask for.

    Each worker draws its random numbers on its device, so the result would depend on the number of workers and on the
    use of a GPU.
    """
    for module in backbone.modules():
        if probability := _DRAWING.get(type(module).__name__):
            setattr(module, probability, 0.0)


def fetch_weights(config: ClipConfig) -> Path | None:
    """Puts the weights that a tag of open_clip names into its cache; returns their file, None if no tag names them.

    Raises:
        ValueError: They are not in the cache and cannot be downloaded, or what is named is neither a tag nor a file.
    """
    tag = open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if config.pretrained else None
    if not tag:
        require_weights_file(config)
        return None
    try:
        return Path(open_clip.download_pretrained(tag))
    # Errors of the hub, of its client and of the network have no common class.
    except Exception as error:
        source = f"the model hub's {tag['hf_hub'].rstrip('/')}" if tag.get("hf_hub") else tag.get("url")
        raise ValueError(
            f"the weights {config.pretrained!r} of {config.architecture} are not in the cache of this machine and "
            f"cannot be downloaded from {source} ({type(error).__name__}). Connect to the network once, or set "
            "model.clip.pretrained to a local file of them (OpenAI's .pt, .bin, .safetensors)"
        ) from error


def save_clip(config: ClipConfig, path: Path) -> None:
    """Writes the weights that ``config.pretrained`` names to ``path``, as safetensors under the backbone's names."""
    save_file({name: tensor.contiguous() for name, tensor in load_clip(config).state_dict().items()}, path)


def read_architecture(name: str) -> dict[str, Any]:
    """Returns an architecture in open_clip's format: a JSON file's, a shipped one, or open_clip's own.

    Raises:
        ValueError: There is no such architecture, its file cannot be read, or it is of an unsupported kind.
    """
    architecture: dict[str, Any] | None
    path = architecture_file(name)
    if path:
        require(path.is_file(), f"clip.architecture is {name!r}, but there is no such file")
        architecture = _architecture_in(path)
    else:
        architecture = open_clip.get_model_config(name)
    if architecture is None:
        raise ValueError(
            f"clip.architecture is {name!r}; it must be a JSON file, a name that open_clip.list_models() knows, or one "
            f"of {sorted(path.stem for path in ARCHITECTURES.glob('*.json'))}"
        )
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - architecture.keys()
    require(not missing, f"clip.architecture {name!r} lacks {sorted(missing)}, which open_clip's format asks for")
    for part in ("vision_cfg", "text_cfg"):
        require(
            isinstance(architecture[part], Mapping),
            f"clip.architecture {name!r} has {part}: {architecture[part]!r:.40}; open_clip's format asks for an object",
        )
    if (reason := refusal(architecture)) is not None:
        raise ValueError(
            f"clip.architecture {name!r} {reason}: one feature per word is needed from the text tower; choose another "
            "one (docs/encoders.md)"
        )
    return architecture


def _architecture_in(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"clip.architecture {str(path)!r} is not JSON, or is damaged: {error}; give a file in open_clip's format"
        ) from error
    # A model's folder on the Hub keeps the architecture within its open_clip_config.json.
    found = document.get("model_cfg", document) if isinstance(document, Mapping) else document
    require(
        isinstance(found, Mapping),
        f"clip.architecture {str(path)!r} holds {found!r:.40}; open_clip's format asks for an object",
    )
    return {key: value for key, value in found.items() if key != PREPROCESSING}


def refusal(architecture: Mapping[str, Any]) -> str | None:
    """Returns why an architecture in open_clip's format cannot be used, None if it can."""
    text = architecture["text_cfg"]
    if "multimodal_cfg" in architecture or text.get("embed_cls"):
        return "reads its texts with a class token and a captioner on top (CoCa)"
    if "hf_model_name" in text:
        return f"has {text['hf_model_name']} of the library transformers as its text tower"
    if other := (text.get("tokenizer_kwargs") or {}).keys() - {"clean"} | text.keys() & {"tokenizer_mode"}:
        return f"takes its tokens apart in a way of its own ({', '.join(sorted(other))})"
    if (pool := text.get("pool_type", "argmax")) not in TEXT_POOLS:
        return f"has no embedding of a whole text (pool_type {pool})"
    return None


def build_clip(architecture: Mapping[str, Any], codec: Codec | None = None) -> ClipBackbone:
    """Returns a freshly initialised backbone for an architecture in open_clip's format; ``codec`` as its own.

    Raises:
        ValueError: open_clip does not know one of the settings.
    """
    settings = dict(architecture)
    model_class = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    try:
        model = model_class(**settings)
    except TypeError as error:
        raise ValueError(f"open_clip cannot build the architecture {dict(architecture)}: {error}") from error
    return ClipBackbone(model, embedding_dim=settings["embed_dim"], codec=codec)


def caption_tokenizer(config: RetrievalConfig) -> CaptionTokenizer:
    """Returns what turns captions into the tokens of the model with these settings, without building the model.

    Raises:
        ValueError: The architecture or its tokenizer cannot be used.
    """
    codec = file_codec(config.clip, read_architecture(config.clip.architecture)["text_cfg"])
    return CaptionTokenizer(config.max_words, codec)


def require_same_activation(architecture: Mapping[str, Any], *, quick_gelu: bool, config: ClipConfig) -> None:
    """Raises ``ValueError`` where weights trained with one GELU would run with the other."""
    has_quick_gelu = architecture.get("quick_gelu", False)
    require(
        has_quick_gelu == quick_gelu,
        f"the weights {config.pretrained!r} were trained with quick_gelu={quick_gelu}, but clip.architecture "
        f"{config.architecture!r} has quick_gelu={has_quick_gelu}; choose the architecture "
        f"{'with' if quick_gelu else 'without'} '-quickgelu' in its name",
    )


def require_weights_file(config: ClipConfig) -> None:
    """Raises ``ValueError`` where ``config.pretrained``, which is no tag, is no file either."""
    require(
        config.pretrained is None or Path(config.pretrained).is_file(),
        f"clip.pretrained is {config.pretrained!r}; for {config.architecture!r} it must be null, a checkpoint file or "
        f"one of open_clip's tags {open_clip.list_pretrained_tags_by_model(config.architecture)}",
    )


def read_weights_file(architecture: Mapping[str, Any], config: ClipConfig) -> dict[str, Tensor]:
    """Returns the tensors of the checkpoint ``config.pretrained`` under the names of the backbone.

    Raises:
        ValueError: There is no such file or tag, the file is no checkpoint, or it was trained with
            the other GELU.
    """
    require_weights_file(config)
    state = encoder_of_ours(read_checkpoint(Path(str(config.pretrained))))
    if is_transformers_clip(state):
        state = from_transformers_clip(state)
    # All of OpenAI were trained with QuickGELU, and their archives do not say so.
    if any(name in state for name in OPENAI_CONSTANTS):
        require_same_activation(architecture, quick_gelu=True, config=config)
    # Weights of open_clip's CustomTextCLIP have "text." before the names of the text tower, and the backbone has not.
    return {
        name.removeprefix("text.") if name.removeprefix("text.").startswith(TEXT_TOWER) else name: tensor
        for name, tensor in state.items()
        if name not in UNUSED_ENTRIES
    }


def encoder_of_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns CLIP's tensors where ``state`` is a whole model that this project trained; else ``state`` as it is."""
    # Of a retrieval model, and of the one inside of a question answering model.
    for prefix in ("clip.", "encoder.clip."):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if own:
            return own
    return state


def load_weights(backbone: ClipBackbone, state: dict[str, Tensor], config: ClipConfig) -> None:
    """Loads the tensors into the backbone, every one of them, in its own precision.

    Raises:
        ValueError: They are not exactly the tensors of the architecture.
    """
    if "logit_scale" in state:
        # A scalar in some releases, a vector of length one in others.
        state = {**state, "logit_scale": state["logit_scale"].reshape(backbone.logit_scale.shape)}
    own = backbone.state_dict()
    shaped = {name: tensor for name, tensor in state.items() if name in own and tensor.shape != own[name].shape}
    misfits = {
        "missing": own.keys() - state.keys(),
        "left over": state.keys() - own.keys(),
        "of another shape": [f"{name}: {tuple(t.shape)} for {tuple(own[name].shape)}" for name, t in shaped.items()],
    }
    if any(misfits.values()):
        raise ValueError(
            f"{config.pretrained} does not fit clip.architecture {config.architecture!r}: "
            f"{', '.join(f'{what} {listed(names)}' for what, names in misfits.items() if names)}; choose the "
            "architecture that the weights were trained with"
        )
    backbone.load_state_dict(state)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, a saved state dict, or OpenAI's TorchScript archive.

    Raises:
        ValueError: The file is none of these.
    """
    try:
        content = _read_file(path)
    # A damaged pickle is a program with wrong instructions, so it may raise any error.
    except Exception as error:
        raise ValueError(
            f"{path} is not a checkpoint that holds only tensors, and nothing else is unpickled: {error}"
        ) from error
    content = _state_dict_in(content, path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds {type(content).__name__}, not the tensors of a model; give a state dict (.pt, .bin), "
            "a .safetensors file or OpenAI's .pt archive"
        )
    return without_wrappers({str(name): tensor for name, tensor in content.items()})


def _state_dict_in(content: Any, path: Path) -> Any:
    """The tensors in what a training wrote beside its epoch and its optimizer."""
    if not isinstance(content, Mapping) or _is_state_dict(content):
        return content
    if "state_dict" in content:
        return content["state_dict"]
    found = [str(name) for name, value in content.items() if _is_state_dict(value)]
    require(
        len(found) <= 1,
        f"{path} holds the tensors of several models: {', '.join(found)}; save the one that is meant by itself",
    )
    return content[found[0]] if found else content


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    # A best score beside the weights is often a NumPy number.
    with torch.serialization.safe_globals(_NUMPY_NUMBERS):
        return torch.load(path, map_location="cpu", weights_only=True)


def is_torchscript(path: Path) -> bool:
    """Returns whether the file is a TorchScript archive, told by the member that holds its constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(member.endswith("/constants.pkl") for member in archive.namelist())
