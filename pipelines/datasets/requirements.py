"""Checks, as soon as there is a manifest, that a data set holds what the stages of a recipe need.

Which videos cannot be decoded is not known yet, so the trainings check their split again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.answers import Vocabulary
from pipelines.recipe.data import SPLITS, Split
from pipelines.recipe.recipe import Recipe

NEEDING = frozenset({"estimator", "retrieval", "evaluation", "zero_shot", "video_qa", "probe", "qa_evaluation"})
"""Stages that need some number of texts in a split."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of one kind in a manifest, by split: their number, and the number of their videos."""

    what: str
    videos: Mapping[Split, int]
    texts: Mapping[Split, int]

    def found(self) -> str:
        """The videos of every split, for messages."""
        return ", ".join(f"{split} {self.videos[split]:,}" for split in SPLITS)


def require_data(
    recipe: Recipe, stages: Collection[str], manifest: pa.Table, vocabulary: Vocabulary | None = None
) -> None:
    """Refuses data that is not enough for one of ``stages``.

    Args:
        recipe: of the run.
        stages: names of those that will run.
        manifest: as ``records.MANIFEST``.
        vocabulary: of answers, if it is known already.

    Raises:
        ValueError: a split is empty, or smaller than the batch of a training; the message lists all of it.
    """
    problems = list(_problems(recipe, stages, manifest, vocabulary))
    if problems:
        raise ValueError("the data cannot serve this recipe: " + "\n  and ".join(problems))


def require_validation(stage: str, manifest: pa.Table) -> None:
    """Refuses data without a validation split, with which trainings of ``stage`` could not be compared.

    Raises:
        ValueError: there is no validation split.
    """
    videos = pc.any(pc.equal(manifest.column("split"), "val")).as_py()
    if not (_questions(manifest).videos["val"] if stage == "video_qa" else videos):
        raise ValueError(
            "the data has no validation split, so trials cannot be compared; set data.validation_videos, or give the "
            "data a split val"
        )


def _problems(recipe: Recipe, stages: Collection[str], table: pa.Table, vocabulary: Vocabulary | None) -> Iterator[str]:
    captions, questions = _captions(table), _questions(table)
    if "estimator" in stages and recipe.estimator.epochs:
        # Labels are made of the captions of training videos, or of their training and validation questions.
        yield from _too_few_pairs(recipe, captions if recipe.data.has_captions else questions)
    if "retrieval" in stages:
        yield from _too_few("retrieval.batch_size", recipe.retrieval.batch_size, captions)
    if "evaluation" in stages or "zero_shot" in stages:
        yield from _empty("evaluation.split", recipe.evaluation.split, captions)
    if "evaluation" in stages and (methods := recipe.evaluation.bank_methods) and not captions.videos["train"]:
        yield (
            f"evaluation.post_processing [{', '.join(methods)}] needs a bank of training captions, and no video of the "
            f"split train has captions (videos by split: {captions.found()}): leave {' and '.join(methods)} out, or "
            "add training videos"
        )
    if "video_qa" in stages:
        # Training leaves out questions whose answer is not in the vocabulary.
        asked = questions if vocabulary is None else _questions(table, vocabulary)
        yield from _too_few("video_qa.batch_size", recipe.video_qa.batch_size, asked)
    if "probe" in stages:
        yield from _empty("probe.split", recipe.probe.split, captions)
    if "qa_evaluation" in stages:
        yield from _empty("qa_evaluation.split", recipe.qa_evaluation.split, questions)


def _too_few(setting: str, batch_size: int, texts: _Texts) -> Iterator[str]:
    if (found := texts.videos["train"]) < batch_size:
        todo = f"set {setting} to {found:,} or less, or add training videos" if found else f"add {texts.what}"
        yield (
            f"{setting} is {batch_size:,}, and no video is in a batch twice; the split train has {found:,} videos with "
            f"{texts.what} (by split: {texts.found()}): {todo}"
        )


def _too_few_pairs(recipe: Recipe, texts: _Texts) -> Iterator[str]:
    each = recipe.labels.captions_per_video
    splits: Sequence[Split] = ("train",) if recipe.data.has_captions else ("train", "val")
    found, videos = (sum(counts[split] for split in splits) for counts in (texts.texts, texts.videos))
    # An upper bound: some videos may have fewer captions than each.
    found = found if each is None else min(found, each * videos)
    if found < recipe.estimator.batch_size:
        todo = f"set estimator.batch_size to {found:,} or less, or add training videos" if found else "add some"
        yield (
            f"estimator.batch_size is {recipe.estimator.batch_size:,} pairs, and the training videos have {found:,} "
            f"{texts.what} to make pairs of (videos by split: {texts.found()}): {todo}"
        )


def _empty(setting: str, split: Split, texts: _Texts) -> Iterator[str]:
    if not texts.videos[split]:
        yield (
            f"{setting} is {split}, and no video of that split has {texts.what} (videos by split: {texts.found()}): "
            f"set {setting} to another split, or give some videos the split {split}"
        )


def _captions(table: pa.Table) -> _Texts:
    lengths, splits = pc.list_value_length(table.column("captions")), table.column("split")
    of_split = {split: lengths.filter(pc.equal(splits, split)) for split in SPLITS}
    return _Texts(
        "captions",
        # Arrow's sum of no rows is null.
        {split: pc.sum(pc.greater(found, 0)).as_py() or 0 for split, found in of_split.items()},
        {split: pc.sum(found).as_py() or 0 for split, found in of_split.items()},
    )


def _questions(table: pa.Table, vocabulary: Vocabulary | None = None) -> _Texts:
    """By the splits of the questions, which may differ from those of their videos."""
    column = table.column("questions")
    # Two arrays with an entry per question: the row of its video, and the question.
    videos, asked = pc.list_parent_indices(column), pc.list_flatten(column)
    splits = pc.struct_field(asked, "split")
    if vocabulary is not None:
        known = pc.is_in(pc.struct_field(asked, "answer"), pa.array(vocabulary.answers, pa.string()))
        videos, splits = videos.filter(known), splits.filter(known)
    of_split = {split: videos.filter(pc.equal(splits, split)) for split in SPLITS}
    return _Texts(
        "questions" if vocabulary is None else "questions that the vocabulary has an answer to",
        {split: pc.count_distinct(found).as_py() for split, found in of_split.items()},
        {split: len(found) for split, found in of_split.items()},
    )
