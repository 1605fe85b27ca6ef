"""Checks, before the first stage of a run starts, that the weights it needs exist and fit, and its decoder is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from hbi_models.config_fields import require
from hbi_models.configs import LossConfig
from pipelines.datasets.answers import Vocabulary
from pipelines.models.clip_weights import hand_out
from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import encoder_checkpoint
from pipelines.stages.plan import Step
from pipelines.stages.stage import Stage
from pipelines.workspace.artifact import digest
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)


def require_weights(steps: Sequence[Step], recipe: Recipe) -> None:
    """Loads the initial weights of all unfinished steps into their models; looks for the decoder of their images.

    Models that answer questions need a vocabulary: see :func:`require_answering_weights`.

    Weights that a tag names are put into the workspace, from which all nodes read them. Loading a model twice costs
    less than finding the mistake after hours of decoding.

    Raises:
        FileNotFoundError, ValueError: some cannot be had, or do not fit; the message says which and what to do.
    """
    pending = {step.stage.name: step.stage for step in steps if step.state != "done"}
    for name, trained in (("retrieval", recipe.retrieval), ("video_qa", recipe.video_qa)):
        require(
            name not in pending or trained.image_decoding == "cpu" or find_spec("torchcodec") is not None,
            f"{name}.image_decoding is gpu, and torchcodec is not installed: pip install 'hbi-on-ray[torchcodec]'",
        )
    # From cheap to dear: names and sizes, then a download of weights, then whole models.
    if recipe.model.tokens is None and pending.keys() & {"zero_shot", "features", "labels", "retrieval", "video_qa"}:
        require_encoder(recipe)
    if _starts_from_clip(pending, recipe):
        hand_out(Storage(recipe.workspace), recipe.model.clip)
    for checkpoint, name in _retrieval_checkpoints(pending, recipe).items():
        from pipelines.models.initial_weights import initialise_from, load_checkpoint

        logger.info("%s: checking that %s fits", name, checkpoint)
        with TemporaryDirectory() as scratch:
            if name == "retrieval":
                from hbi_models.retrieval import RetrievalModel
                from pipelines.models.weights import without_pretraining

                initialise_from(checkpoint, RetrievalModel(without_pretraining(recipe.model)), Path(scratch))
            else:
                # A folder of ours brings its own configuration.
                load_checkpoint(checkpoint, recipe.model, Path(scratch))
    if "estimator" in pending and recipe.estimator.init_checkpoint is not None:
        from pipelines.models.estimator import make_estimator

        make_estimator(recipe.model.game.estimator_channels, recipe.estimator.init_checkpoint)


def require_answering_weights(steps: Sequence[Step], recipe: Recipe, vocabulary: Vocabulary | None) -> None:
    """Loads the checkpoint that question answering starts from, or that is evaluated, once its answers are known.

    Raises:
        FileNotFoundError, ValueError: it cannot be had, does not fit, or chooses from other answers.
    """
    pending = {step.stage.name: step.stage for step in steps if step.state != "done"}
    start = recipe.video_qa.init_checkpoint if "video_qa" in pending else None
    given = [*pending["qa_evaluation"].reads.values()] if "qa_evaluation" in pending else []
    if vocabulary is None or (start is None and not given):
        return
    from hbi_models.video_qa import VideoQAModel
    from pipelines.models.initial_weights import initialise_video_qa_from, load_video_qa_checkpoint
    from pipelines.models.weights import without_pretraining

    config = recipe.video_qa_model(len(vocabulary))
    logger.info("video_qa: checking that %s fits", start or given[0])
    with TemporaryDirectory() as scratch:
        if start is not None:
            model = VideoQAModel(replace(config, encoder=without_pretraining(config.encoder)))
            initialise_video_qa_from(start, model, vocabulary, Path(scratch))
        for checkpoint in given:
            load_video_qa_checkpoint(checkpoint, config, Path(scratch))


class WeightsChecks:
    """The same for many recipes of a tuning. Recipes with the same settings for weights are checked once."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def require_answering(self, steps: Sequence[Step], recipe: Recipe, vocabulary: Vocabulary | None) -> None:
        """As :func:`require_answering_weights`."""
        known = None if vocabulary is None else vocabulary.answers
        names = [step.stage.name for step in steps if step.state != "done"]
        model, trained = replace(recipe.model, loss=LossConfig()), recipe.video_qa
        own = [trained.merging, trained.head, trained.max_words, trained.init_checkpoint]
        asked = digest([known, names, model, *own])
        if asked not in self._asked:
            require_answering_weights(steps, recipe, vocabulary)
            self._asked.add(asked)

    def require(self, steps: Sequence[Step], recipe: Recipe) -> None:
        """As :func:`require_weights`."""
        # The settings of the losses have no part in which weights fit.
        model = replace(recipe.model, loss=LossConfig())
        starts = [section.init_checkpoint for section in (recipe.estimator, recipe.retrieval, recipe.video_qa)]
        names = [step.stage.name for step in steps if step.state != "done"]
        read = [recipe.frames.short_side_px, recipe.video_qa.max_words]
        decoded = [section.image_decoding for section in (recipe.retrieval, recipe.video_qa)]
        asked = digest(
            [model, names, recipe.labels.checkpoint, *starts, recipe.video_qa.from_retrieval, *read, *decoded]
        )
        if asked not in self._asked:
            require_weights(steps, recipe)
            self._asked.add(asked)


def require_encoder(recipe: Recipe) -> None:
    """Looks whether the recipe's architecture can be used, has its tokenizer, and fits what is read and stored.

    Raises:
        ValueError: it cannot, or does not; the message says why.
    """
    from hbi_models.clip.backbone import square_size
    from hbi_models.clip.loading import caption_tokenizer, read_architecture

    clip = recipe.model.clip
    architecture = read_architecture(clip.architecture)
    context = architecture["text_cfg"].get("context_length", 77)
    longest = max(recipe.model.max_words, recipe.video_qa.max_words if "video_qa" in recipe.tasks else 0)
    require(
        longest <= context,
        f"max_words is {longest}, but clip.architecture {clip.architecture!r} has {context} text positions; lower it",
    )
    size = square_size(architecture["vision_cfg"].get("image_size", 224))
    require(
        recipe.frames.short_side_px >= size,
        f"frames.short_side_px is {recipe.frames.short_side_px}, but clip.architecture {clip.architecture!r} takes "
        f"images of {size} x {size} pixels; set it to {size} or more",
    )
    caption_tokenizer(recipe.model)


def _starts_from_clip(pending: Mapping[str, Stage], recipe: Recipe) -> bool:
    """Whether a model is built with CLIP's pretrained weights."""
    if recipe.model.clip.pretrained is None or recipe.model.tokens is not None:
        return False
    answering = recipe.video_qa.init_checkpoint is None and not recipe.video_qa.from_retrieval
    return (
        "zero_shot" in pending
        or ("features" in pending and encoder_checkpoint(recipe) is None)
        or ("labels" in pending and recipe.labels.checkpoint is None)
        or ("retrieval" in pending and recipe.retrieval.init_checkpoint is None)
        or ("video_qa" in pending and answering)
    )


def _retrieval_checkpoints(pending: Mapping[str, Stage], recipe: Recipe) -> dict[str, str]:
    """The places of given retrieval models, with the first stage that starts from each."""
    found: dict[str, str] = {}
    if "retrieval" in pending and recipe.retrieval.init_checkpoint is not None:
        found[recipe.retrieval.init_checkpoint] = "retrieval"
    if "labels" in pending and recipe.labels.checkpoint is not None:
        found.setdefault(recipe.labels.checkpoint, "labels")
    # What --checkpoint names is not in the recipe, but in what these stages read.
    for stage in ("evaluation", "probe"):
        if stage in pending:
            found |= dict.fromkeys(pending[stage].reads.values(), stage)
    return found
