"""The stages of a recipe.

    shapes ─► manifest ─► frames ─┬─► labels ─► estimator ─┐
    (generated data only)         └────────────────────────┴─► retrieval ─► evaluation

A stage's settings hold what its result depends on and nothing else: resources, tracking and the
workspace's address are left out, so that moving to a larger cluster reruns nothing.
"""

from __future__ import annotations

from pipelines.configs import Recipe
from pipelines.data.frames_stage import frames_stage
from pipelines.data.labels_stage import labels_stage
from pipelines.data.stages import manifest_stage, shapes_stage
from pipelines.evaluate.stages import evaluation_stage
from pipelines.stages import Graph, Stage
from pipelines.storage import Storage
from pipelines.train.stages import estimator_stage, retrieval_stage


def make_graph(recipe: Recipe) -> Graph:
    """The stages from raw videos to an evaluated retrieval model.

    Raises:
        FileNotFoundError: annotations or videos are not there.
        ValueError: the recipe's data cannot be used.
    """
    stages = _data_stages(recipe)
    if recipe.has_estimator:
        stages += [*([labels_stage(recipe)] if recipe.estimator.epochs else []), estimator_stage(recipe)]
    stages += [retrieval_stage(recipe), evaluation_stage(recipe)]
    return Graph(Storage(recipe.workspace), stages)


def make_evaluation_graph(recipe: Recipe, checkpoint: str) -> Graph:
    """The stages that evaluate ``checkpoint``, ours or a published one, without training.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`.
    """
    return Graph(Storage(recipe.workspace), [*_data_stages(recipe), evaluation_stage(recipe, checkpoint)])


def _data_stages(recipe: Recipe) -> list[Stage]:
    generated = [] if recipe.data.shapes is None else [shapes_stage(recipe.data.shapes, recipe)]
    return [*generated, manifest_stage(recipe.data), frames_stage(recipe)]
