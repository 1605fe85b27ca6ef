"""The stages of a recipe.

    shapes ─► manifest ─┬─► answers ────────────────────────────────────────┐
    (generated only)    └─► frames ─┬─► labels ─► estimator ─┐              │
                                    └────────────────────────┼─► retrieval ─┼─► evaluation
                                                             │      ┆       │
                                                             └──────┴───────┴─► video_qa ─► qa_evaluation

The recipe's tasks say which of the two ends there are; the stage ``report`` comes after all of
them and shows what they made. The dotted line is there where question
answering starts from the retrieval model.

A stage's settings hold what its result depends on and nothing else: resources, tracking and the
workspace's address are left out, so that moving to a larger cluster reruns nothing.
"""

from __future__ import annotations

from dataclasses import replace

from pipelines.configs import AnswersConfig, Recipe
from pipelines.data.answers import ANSWERS_JSON
from pipelines.data.answers_stage import answers_stage
from pipelines.data.frames_stage import frames_stage
from pipelines.data.labels_stage import labels_stage
from pipelines.data.stages import manifest_stage, shapes_stage
from pipelines.data.video_files import join_uri
from pipelines.evaluate.stages import evaluation_stage, qa_evaluation_stage
from pipelines.report.stage import report_stage
from pipelines.stages import Graph, Stage
from pipelines.storage import Storage
from pipelines.train.model_folder import is_published_file, vocabulary_of
from pipelines.train.stages import estimator_stage, retrieval_stage, video_qa_stage


def make_graph(recipe: Recipe) -> Graph:
    """The stages from raw videos to evaluated models.

    Raises:
        FileNotFoundError: annotations or videos are not there.
        ValueError: the recipe's data cannot be used.
    """
    answering = "video_qa" in recipe.tasks
    stages = _data_stages(recipe, answering=answering)
    if recipe.has_estimator:
        stages += [*([labels_stage(recipe)] if recipe.estimator.epochs else []), estimator_stage(recipe)]
    if "retrieval" in recipe.tasks:
        stages += [retrieval_stage(recipe), evaluation_stage(recipe)]
    if answering:
        stages += [video_qa_stage(recipe), qa_evaluation_stage(recipe)]
    if recipe.report.enabled:
        stages.append(report_stage(recipe, stages))
    return Graph(Storage(recipe.workspace), stages)


def make_evaluation_graph(recipe: Recipe, checkpoint: str) -> Graph:
    """The stages that evaluate the retrieval model ``checkpoint``, ours or a published one, without training.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`.
    """
    return Graph(Storage(recipe.workspace), [*_data_stages(recipe), evaluation_stage(recipe, checkpoint)])


def make_qa_evaluation_graph(recipe: Recipe, checkpoint: str) -> Graph:
    """The stages that evaluate the question answering model ``checkpoint`` without training.

    A model of ours brings its answers; those of a published one are the recipe's.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`, or ``checkpoint`` is no such model.
    """
    if not is_published_file(checkpoint):
        vocabulary_of(checkpoint)
        answers = AnswersConfig(file=join_uri(checkpoint, ANSWERS_JSON))
        recipe = replace(recipe, video_qa=replace(recipe.video_qa, answers=answers))
    stages = [*_data_stages(recipe, answering=True), qa_evaluation_stage(recipe, checkpoint)]
    return Graph(Storage(recipe.workspace), stages)


def _data_stages(recipe: Recipe, *, answering: bool = False) -> list[Stage]:
    generated = [] if recipe.data.shapes is None else [shapes_stage(recipe.data.shapes, recipe)]
    manifest = manifest_stage(recipe.data)
    # Before any video is decoded: questions that cannot be used are found at once.
    answers = [answers_stage(recipe)] if answering else []
    return [*generated, manifest, *answers, frames_stage(recipe)]
