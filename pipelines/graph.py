"""The stages of a recipe.

    shapes ─► manifest ─┬─► answers ────────────────────────────────────────┐
    (generated only)    └─► frames ─┬─► labels ─► estimator ─┐              │
                                    ├─► zero_shot            │              │
                                    └────────────────────────┼─► retrieval ─┼─► evaluation
                                                             │      ┆       │
                                                             └──────┴───────┴─► video_qa ─► qa_evaluation

The recipe's tasks choose which of the two branches a run has. The stage ``report`` comes last and shows the results of
all others. The dotted line exists only where question answering starts from the retrieval model. Where the encoder is
frozen, the stage ``features`` stands between the frames and all later stages, which read features instead of frames.

A stage's settings hold what its result depends on and nothing else: resources, tracking and the
workspace's address are left out, so that moving to a larger cluster reruns nothing.
"""

from __future__ import annotations

from dataclasses import replace

from hbi_models.config_fields import require
from hbi_models.zero_shot_config import ZeroShotConfig
from pipelines.datasets.answers import ANSWERS_JSON
from pipelines.datasets.collection import folder_of_collection
from pipelines.models.folder import MODEL, is_published_file, vocabulary_of
from pipelines.recipe.data import DataConfig
from pipelines.recipe.features import FeaturesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.training import AnswersConfig, AugmentationConfig
from pipelines.search.search_model import SearchModel
from pipelines.stages.answers import answers_stage
from pipelines.stages.bank import bank_stage
from pipelines.stages.collection import collection_stage
from pipelines.stages.estimator import estimator_stage
from pipelines.stages.evaluation import evaluation_stage
from pipelines.stages.features import features_stage
from pipelines.stages.frames import frames_stage
from pipelines.stages.index import index_stage
from pipelines.stages.labels import labels_stage
from pipelines.stages.manifest import manifest_stage
from pipelines.stages.plan import Graph
from pipelines.stages.probe import probe_stage
from pipelines.stages.qa_evaluation import qa_evaluation_stage
from pipelines.stages.report import report_stage
from pipelines.stages.retrieval import retrieval_stage
from pipelines.stages.settings import counting
from pipelines.stages.shapes import shapes_stage
from pipelines.stages.stage import Stage
from pipelines.stages.video_qa import video_qa_stage
from pipelines.stages.zero_shot import zero_shot_stage
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri


def make_graph(recipe: Recipe) -> Graph:
    """The stages from raw videos to evaluated models.

    Raises:
        FileNotFoundError: annotations or videos are not there.
        ValueError: the recipe's data cannot be used.
    """
    answering = "video_qa" in recipe.tasks
    stages = _data_stages(recipe, answering=answering)
    # Features that are given take the place of the frames, among the stages of the data.
    if recipe.stores_features and recipe.data.features is None:
        stages.append(features_stage(recipe))
    if recipe.has_estimator:
        # With 0 epochs a given estimator is taken as it is, and no stage reads labels.
        stages += [*([labels_stage(recipe)] if recipe.estimator.epochs else []), estimator_stage(recipe)]
    if "retrieval" in recipe.tasks:
        stages += [zero_shot_stage(recipe)] if recipe.evaluation.zero_shot else []
        stages += [retrieval_stage(recipe), evaluation_stage(recipe)]
    if answering:
        stages += [video_qa_stage(recipe), qa_evaluation_stage(recipe)]
    # The page shows videos, of which there are none where features are given.
    if recipe.report.enabled and recipe.data.features is None:
        stages.append(report_stage(recipe, stages))
    return Graph(Storage(recipe.workspace), stages)


def make_evaluation_graph(recipe: Recipe, checkpoint: str) -> Graph:
    """The stages that evaluate the retrieval model ``checkpoint``, ours or a published one, without training.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`.
    """
    return Graph(Storage(recipe.workspace), [*_data_stages(recipe), evaluation_stage(recipe, checkpoint)])


def make_probe_graph(recipe: Recipe, checkpoint: str | None = None) -> Graph:
    """The stages that probe the retrieval model ``checkpoint``, or the one that the recipe trains, which must be there.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`, or the recipe's model is not trained yet.
    """
    require(
        recipe.data.features is None,
        f"data.features is {recipe.data.features}; a probe looks at videos and words, which such features do "
        "not show; probe a model that was trained with CLIP",
    )
    if checkpoint is None:
        trained = make_graph(recipe)
        artifact = trained.artifact("retrieval") if "retrieval" in recipe.tasks else None
        if artifact is None:
            raise FileNotFoundError(
                f"{recipe.workspace} holds no retrieval model that this recipe has trained; train it with jobs.run, or "
                "give one with --checkpoint"
            )
        checkpoint = artifact.storage.folder(MODEL).uri
    return Graph(Storage(recipe.workspace), [*_data_stages(recipe), probe_stage(recipe, checkpoint)])


def make_zero_shot_graph(recipe: Recipe) -> Graph:
    """The stages that evaluate the recipe's pretrained encoder alone.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`, or there are no pretrained weights.
    """
    return Graph(Storage(recipe.workspace), [*_data_stages(recipe), zero_shot_stage(recipe)])


def make_qa_evaluation_graph(recipe: Recipe, checkpoint: str) -> Graph:
    """The stages that evaluate the question answering model ``checkpoint`` without training.

    The answers come from a model of ours; for a published one, from the recipe.

    Raises:
        FileNotFoundError, ValueError: as :func:`make_graph`, or ``checkpoint`` is no such model.
    """
    if not is_published_file(checkpoint):
        # For its errors: a folder without answers is refused here.
        vocabulary_of(checkpoint)
        answers = AnswersConfig(file=join_uri(checkpoint, ANSWERS_JSON))
        recipe = replace(recipe, video_qa=replace(recipe.video_qa, answers=answers))
    stages = [*_data_stages(recipe, answering=True), qa_evaluation_stage(recipe, checkpoint)]
    return Graph(Storage(recipe.workspace), stages)


def _data_stages(recipe: Recipe, *, answering: bool = False) -> list[Stage]:
    generated = [] if recipe.data.shapes is None else [shapes_stage(recipe.data.shapes, recipe)]
    manifest = manifest_stage(recipe.data)
    # Read before any video is decoded, so that unusable questions stop the run at once.
    answers = [answers_stage(recipe)] if answering else []
    videos = frames_stage(recipe) if recipe.data.features is None else features_stage(recipe)
    return [*generated, manifest, *answers, videos]


def make_index_graph(recipe: Recipe, videos: str, model: SearchModel) -> tuple[Graph, Recipe]:
    """The stages of an index of ``videos`` in ``recipe.workspace``, and the recipe with the model's settings.

    Raises:
        FileNotFoundError, ValueError: ``videos`` cannot be used.
    """
    # Settings that determine the frames come from the model; limits and sizes of the work from the recipe.
    config = model.config
    if isinstance(config, ZeroShotConfig):
        config = replace(recipe.model, clip=config.clip, max_frames=config.max_frames)
    deciding = {name: getattr(model.frames, name) for name in counting(model.frames)}
    # Nothing is trained here, so that the settings of trainings, and whether they fit this model, do not matter.
    unjudged = AugmentationConfig(enabled=False)
    recipe = replace(
        recipe,
        model=config,
        data=DataConfig(dataset="captions_file", videos=folder_of_collection(videos)),
        frames=replace(recipe.frames, **deciding),
        # A recipe of question answering would be refused: a collection has no questions.
        tasks=("retrieval",),
        features=FeaturesConfig(),
        estimator=replace(recipe.estimator, enabled=None),
        retrieval=replace(recipe.retrieval, augmentation=unjudged, image_decoding="cpu"),
        video_qa=replace(recipe.video_qa, augmentation=unjudged, image_decoding="cpu"),
    )
    index = index_stage(recipe, model)
    stages = [collection_stage(videos), frames_stage(recipe), index]
    if recipe.indexing.bank is not None:
        stages.append(bank_stage(recipe, str(index.writes)))
    return Graph(Storage(recipe.workspace), stages), recipe
