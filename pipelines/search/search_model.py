"""The retrieval model that an index is made with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hbi_models.config_fields import require
from hbi_models.configs import RetrievalConfig
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.models.folder import (
    ENCODER_FILES,
    WEIGHTS,
    description_of,
    is_published_file,
    kind_of_model,
    model_folder,
)
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.contents import content_digest
from pipelines.workspace.uris import join_uri


@dataclass(frozen=True)
class SearchModel:
    """A retrieval model to make an index with, or a pretrained encoder alone."""

    checkpoint: str | None
    """A folder of ours, or a file of the published code; None = the pretrained encoder that ``config`` names."""
    config: RetrievalConfig | ZeroShotConfig
    frames: FramesConfig
    """How the videos that it was trained on were sampled."""
    digest: str
    """Of its weights and configuration."""


def read_search_model(checkpoint: str, recipe: Recipe) -> SearchModel:
    """Examines ``checkpoint`` without loading its weights. ``recipe`` supplies configuration and frames if it lacks
    them.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it holds another kind of model.
    """
    if is_published_file(checkpoint):
        # The file says nothing of its model, so the recipe's settings are a part of what it is.
        contents = {"weights": content_digest(checkpoint), "config": plain(recipe.model)}
        return SearchModel(checkpoint, recipe.model, recipe.frames, digest(contents))
    from hbi_models.config_reading import config_from_plain
    from pipelines.models.one_video import frames_of

    folder = model_folder(checkpoint)
    kind = kind_of_model(folder)
    require(kind == "retrieval", f"{checkpoint} holds a model of kind {kind!r}; one of kind 'retrieval' is needed")
    description = description_of(folder)["config"]
    config: RetrievalConfig = config_from_plain(RetrievalConfig, description, place=folder.place())
    require(
        config.tokens is None,
        f"{checkpoint} reads features that another model makes of captions and frames (model.tokens), and cannot "
        "encode a query itself; give a model that was trained with CLIP",
    )
    # A recipe in which nothing but the workspace is given says nothing of frames, either.
    frames = frames_of(checkpoint, None if recipe == Recipe(workspace=recipe.workspace) else recipe)
    contents = {"weights": content_digest(join_uri(checkpoint, WEIGHTS)), "config": plain(config)}
    for name in filter(folder.exists, ENCODER_FILES):
        contents[name.removesuffix(".json")] = content_digest(join_uri(checkpoint, name))
    return SearchModel(checkpoint, config, frames, digest(contents))


def pretrained_search_model(config: ZeroShotConfig, recipe: Recipe) -> SearchModel:
    """The encoder of ``config`` without any training; videos are sampled as ``recipe`` says, at the encoder's size.

    Raises:
        ValueError: it cannot be used, or its weights or its tokenizer cannot be had.
    """
    from hbi_models.clip.backbone import square_size
    from hbi_models.clip.codecs import file_codec
    from hbi_models.clip.loading import fetch_weights, read_architecture
    from hbi_models.clip.pixels import with_pixel_statistics

    architecture = read_architecture(config.clip.architecture)
    # Called for their errors, which come before any work, and for what they put into the caches of this machine.
    file_codec(config.clip, architecture["text_cfg"])
    fetch_weights(config.clip)
    size = square_size(architecture["vision_cfg"].get("image_size", 224))
    frames = replace(recipe.frames, short_side_px=size, max_frames=config.max_frames)
    config = config.with_clip(with_pixel_statistics(config.clip))
    named = {name: getattr(config.clip, name) for name in ("architecture", "pretrained", "tokenizer")}
    contents = {
        name: content_digest(value) if value and Path(value).is_file() else value for name, value in named.items()
    }
    # Files count by their contents above, wherever they lie, so their names are left out here.
    known_by_content = config.with_clip(replace(config.clip, architecture="", pretrained=None, tokenizer=None))
    return SearchModel(None, config, frames, digest({"zero_shot": plain(known_by_content), **contents}))
