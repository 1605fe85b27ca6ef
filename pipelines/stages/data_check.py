"""Checks as early as possible, in runs and in plans, that the data hold what the coming stages need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.datasets.answers import Vocabulary
from pipelines.datasets.requirements import NEEDING, require_data
from pipelines.recipe.recipe import Recipe
from pipelines.stages.answers import choose_vocabulary
from pipelines.stages.plan import Graph, Step
from pipelines.workspace.records import MANIFEST_FILE

TELLING = ("manifest", "answers")
"""Stages whose results describe the data."""


@dataclass(frozen=True)
class KnownData:
    """What is known of the data: the manifest and the vocabulary of answers, each once it exists."""

    manifest: pa.Table | None
    vocabulary: Vocabulary | None = None

    def require(self, recipe: Recipe, stages: Collection[str]) -> None:
        """Refuses data with which one of ``stages`` would fail, as far as this is known.

        Raises:
            ValueError: a split is empty, or smaller than the batch of a training; the message lists all of it.
        """
        if self.manifest is not None:
            require_data(recipe, stages, self.manifest, self.vocabulary)


def pending(steps: Sequence[Step]) -> list[str]:
    """The stages that would run, by name."""
    return [step.stage.name for step in steps if step.state != "done"]


def finished(steps: Sequence[Step]) -> set[str]:
    """The names of stages that are done."""
    return {step.stage.name for step in steps if step.state == "done"}


def known_data(graph: Graph, stages: Collection[str]) -> KnownData:
    """What the results of the finished ``stages`` say about the data."""
    if "manifest" not in stages:
        return KnownData(None)
    vocabulary = Vocabulary.read(graph.output("answers")) if "answers" in stages else None
    manifest = graph.output("manifest").read_table(MANIFEST_FILE, columns=["split", "captions", "questions"])
    return KnownData(manifest, vocabulary)


def foreseen_data(graph: Graph, steps: Sequence[Step], recipe: Recipe, stages: Collection[str]) -> KnownData:
    """What the finished ``steps`` say about the data, and what the others will say, as far as ``stages`` need it.

    Nothing is written. A data set that is still to be generated cannot be foreseen.

    Raises:
        FileNotFoundError, ValueError: as the stages themselves.
    """
    if not NEEDING.intersection(stages):
        return KnownData(None)
    planned = {step.stage.name for step in steps}
    known = known_data(graph, finished(steps))
    if known.manifest is None and "manifest" in planned and recipe.data.shapes is None:
        from pipelines.datasets.manifest import build_manifest

        known = KnownData(build_manifest(recipe.data).table)
    # Without a training, the evaluation uses the vocabulary of its checkpoint.
    if known.manifest is None or known.vocabulary is not None or "video_qa" not in stages:
        return known
    shapes = graph.output("shapes") if recipe.data.shapes is not None else None
    return KnownData(known.manifest, choose_vocabulary(recipe, known.manifest, shapes))
