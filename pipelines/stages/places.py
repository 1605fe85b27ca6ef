"""Settings of a recipe that name files and folders which workers read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.recipe.recipe import Recipe
from pipelines.stages.plan import Graph
from pipelines.workspace.uris import absolute_uri, is_local, parent_uri


def places_of(graph: Graph, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The settings that name files and folders, besides the workspace, which workers read, each with its place.

    Only the driver reads annotations.
    """
    data = recipe.data
    # Without data.videos, the paths in a file of the user begin at the folder of that file.
    own = data.annotations if data.dataset == "captions_file" and data.annotations is not None else data.questions
    if data.features is not None:
        yield "data.features", data.features
    elif data.videos is not None:
        yield "data.videos", data.videos
    elif own is not None:
        yield "the folder of the videos", parent_uri(own)
    checkpoints = {
        "estimator.init_checkpoint": recipe.estimator.init_checkpoint,
        "retrieval.init_checkpoint": recipe.retrieval.init_checkpoint,
        "video_qa.init_checkpoint": recipe.video_qa.init_checkpoint,
        "model.clip.pretrained": recipe.model.clip.pretrained,
        "model.clip.architecture": recipe.model.clip.architecture,
        "labels.checkpoint": recipe.labels.checkpoint,
        **{setting: place for stage in graph.stages for setting, place in stage.reads.items()},
    }
    # A tag of published weights or an architecture of open_clip is not a path.
    yield from (
        (setting, place)
        for setting, place in checkpoints.items()
        if place is not None and is_local(place) and Path(absolute_uri(place)).exists()
    )
