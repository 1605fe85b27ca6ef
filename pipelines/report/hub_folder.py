"""A trained model as a folder in the layout of the Hugging Face hub.

    README.md           the model card
    config.json         kind of the model and its configuration
    model.safetensors   weights
    architecture.json   of an encoder that has no name which open_clip or this project knows
    tokenizer.json      of an encoder that does not read CLIP's own tokens
    frames.json         how the videos are sampled and decoded
    selection.json      how the checkpoint was chosen
    answers.json        the answers, of a question answering model
    onnx/               graphs of the towers and the head, if asked for

The folder says nothing of the machine that it was made on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hbi_models.config_fields import require
from pipelines.datasets.answers import ANSWERS_JSON
from pipelines.models.folder import (
    ARCHITECTURE,
    DESCRIPTION,
    ENCODER_FILES,
    FRAMES_JSON,
    HUB_DESCRIPTION,
    LEFT_OUT,
    SELECTION,
    TOKENIZER,
    WEIGHTS,
    description_of,
    is_published_file,
    model_folder,
)
from pipelines.report.model_card import CARD, TrainedRun, model_card, without_places
from pipelines.workspace.errors import examples
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name

KINDS = ("retrieval", "video_qa")

ONNX = "onnx"
"""Folder of the graphs."""


def export_model(checkpoint: str, output: Storage, *, licence: str, onnx: bool) -> list[str]:
    """Writes the model in the folder ``checkpoint`` to ``output``; returns the names of the files.

    Args:
        checkpoint: a folder of ours. Data, figures and recipe on the card come from the run around it.
        output: an empty folder; hidden files may be there.
        licence: of the card, as the hub names it.
        onnx: whether to write ONNX graphs, too.

    Raises:
        FileNotFoundError: there is no such model, or a file that it needs is missing.
        ValueError: the model is of another kind or not whole, ``output`` is not empty, or a graph cannot be made.
        ModuleNotFoundError: ``onnx`` is asked for without the extra of that name.
    """
    require(
        not is_published_file(checkpoint),
        f"{checkpoint} is a file of the published code; an export needs a folder of ours, with its settings beside it",
    )
    folder = model_folder(checkpoint)
    description = description_of(folder)
    kind = str(description["kind"])
    require(
        kind in KINDS, f"{checkpoint} holds a model of kind {kind!r}; models of kind {' and '.join(KINDS)} are exported"
    )
    needed = (WEIGHTS, ANSWERS_JSON) if kind == "video_qa" else (WEIGHTS,)
    if missing := [name for name in needed if not folder.exists(name)]:
        raise FileNotFoundError(
            f"{checkpoint} holds no {' and no '.join(missing)}; give the folder model of a finished training"
        )
    require(
        not description.get(LEFT_OUT),
        f"{checkpoint} is a checkpoint of a training that goes on, without the weights of its frozen encoder; give the "
        "folder model of the finished training",
    )
    # A cloned repository holds .git and .gitattributes.
    there = [name for name in (*output.files(), *output.folders()) if not name.startswith(".")]
    require(not there, f"{output.place()} is not empty, it holds {examples(there)}; give another folder, or empty it")
    files = {name: folder.read_bytes(name) for name in ENCODER_FILES if folder.exists(name)}
    if ARCHITECTURE not in files and (architecture := _architecture(description)) is not None:
        files[ARCHITECTURE] = architecture
    with TemporaryDirectory() as scratch:
        # First, because it may be impossible.
        graphs = _write_graphs(folder, kind, Path(scratch), output) if onnx else []
    for name in (SELECTION, FRAMES_JSON, *needed):
        if folder.exists(name):
            files[name] = folder.read_bytes(name)
    for name, content in files.items():
        output.write_bytes(name, content)
    output.write_json(HUB_DESCRIPTION, _portable(description, files))
    names = [*sorted([*files, HUB_DESCRIPTION]), *graphs]
    card = model_card(last_name(output.uri), kind, files=names, run=TrainedRun.around(folder), licence=licence)
    output.write_bytes(CARD, card.encode())
    return [CARD, *names]


def _clip(description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the encoder, which are a part of ``description``."""
    config = description["config"]
    clip: dict[str, Any] = (config["encoder"] if description["kind"] == "video_qa" else config)["clip"]
    return clip


def _architecture(description: Mapping[str, Any]) -> bytes | None:
    """The architecture of a model that was stored before its architecture was kept beside it."""
    path = Path(str(_clip(description)["architecture"]))
    if path.suffix != ".json":
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"the model was trained with the architecture {path}, which is not there; copy that file to "
            f"{ARCHITECTURE} beside the model's {DESCRIPTION}"
        )
    return path.read_bytes()


def _portable(description: Mapping[str, Any], files: Mapping[str, bytes]) -> Any:
    """The description with names of files in its folder in place of paths."""
    portable = without_places(description)
    clip = _clip(portable)
    if ARCHITECTURE in files:
        clip["architecture"] = ARCHITECTURE
    if TOKENIZER in files:
        clip["tokenizer"] = TOKENIZER
    return portable


def _write_graphs(folder: Storage, kind: str, scratch: Path, output: Storage) -> Sequence[str]:
    from hbi_models.onnx_export import export_onnx
    from pipelines.models.weights import load_model, load_video_qa

    local = scratch / "model"
    model = load_model(folder, local) if kind == "retrieval" else load_video_qa(folder, local)
    made = scratch / ONNX
    made.mkdir()
    export_onnx(model, made)
    output.upload(made, ONNX)
    return [f"{ONNX}/{file.name}" for file in sorted(made.iterdir())]
