"""Whether the weights that a run needs can be had and fit: asked before its first stage starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.recipe.recipe import Recipe
from pipelines.stages.features import encoder_checkpoint
from pipelines.stages.stage import Stage, Step

logger = logging.getLogger(__name__)


def require_weights(steps: Sequence[Step], recipe: Recipe) -> None:
    """Reads the weights that the steps which are not done start from, and fits them to their models.

    A video that is decoded for hours in vain costs more than a model that is loaded twice.

    Raises:
        FileNotFoundError, ValueError: some cannot be had, or do not fit; the message says which and what to do.
    """
    pending = {step.stage.name: step.stage for step in steps if step.state != "done"}
    if _starts_from_clip(pending, recipe):
        from hbi_models.clip.loading import fetch_weights

        fetch_weights(recipe.model.clip)
    with TemporaryDirectory() as scratch:
        for name, checkpoint in _retrieval_checkpoints(pending, recipe):
            from pipelines.models.initial_weights import load_checkpoint

            logger.info("%s: looks whether %s fits", name, checkpoint)
            load_checkpoint(checkpoint, recipe.model, Path(scratch))
    if "estimator" in pending and recipe.estimator.init_checkpoint is not None:
        from pipelines.models.estimator import make_estimator

        make_estimator(recipe.model.game.estimator_channels, recipe.estimator.init_checkpoint)


def _starts_from_clip(pending: Mapping[str, Stage], recipe: Recipe) -> bool:
    """Whether a model is built with CLIP's pretrained weights."""
    if recipe.model.clip.pretrained is None or recipe.model.tokens is not None:
        return False
    answering = recipe.video_qa.init_checkpoint is None and not recipe.video_qa.from_retrieval
    return (
        ("features" in pending and encoder_checkpoint(recipe) is None)
        or ("labels" in pending and recipe.labels.checkpoint is None)
        or ("retrieval" in pending and recipe.retrieval.init_checkpoint is None)
        or ("video_qa" in pending and answering)
    )


def _retrieval_checkpoints(pending: Mapping[str, Stage], recipe: Recipe) -> list[tuple[str, str]]:
    """Stages that start from a retrieval model from elsewhere, with its place."""
    found = []
    if "retrieval" in pending and recipe.retrieval.init_checkpoint is not None:
        found.append(("retrieval", recipe.retrieval.init_checkpoint))
    if "labels" in pending and recipe.labels.checkpoint is not None:
        found.append(("labels", recipe.labels.checkpoint))
    if "evaluation" in pending:
        found += [("evaluation", place) for place in pending["evaluation"].reads.values()]
    return found
