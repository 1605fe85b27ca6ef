"""The retrieval model that an index is made with."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.configs import RetrievalConfig, require
from pipelines.models.folder import DESCRIPTION, WEIGHTS, is_published_file, kind_of_model, model_folder
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.workspace.artifact import digest, plain
from pipelines.workspace.contents import content_digest
from pipelines.workspace.uris import join_uri


@dataclass(frozen=True)
class SearchModel:
    """A retrieval model to make an index with."""

    checkpoint: str
    """A folder of ours, or a file of the published code."""
    config: RetrievalConfig
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
        contents = {"weights": content_digest(checkpoint), "config": plain(recipe.model)}
        return SearchModel(checkpoint, recipe.model, recipe.frames, digest(contents))
    from pipelines.models.one_video import frames_of
    from pipelines.recipe.reading import config_from_plain

    folder = model_folder(checkpoint)
    kind = kind_of_model(folder)
    require(kind == "retrieval", f"{checkpoint} holds a model of kind {kind!r}; one of kind 'retrieval' is needed")
    description = folder.read_json(DESCRIPTION)["config"]
    config: RetrievalConfig = config_from_plain(RetrievalConfig, description, place=folder.place(DESCRIPTION))
    require(
        config.tokens is None,
        f"{checkpoint} reads features that another model makes of captions and frames (model.tokens), and cannot "
        "encode a query itself; give a model that was trained with CLIP",
    )
    frames = frames_of(checkpoint, None if recipe == Recipe(workspace=recipe.workspace) else recipe)
    weights = content_digest(join_uri(checkpoint, WEIGHTS))
    return SearchModel(checkpoint, config, frames, digest({"weights": weights, "config": plain(config)}))
