"""Figures beside the raw ones: other conventions for several captions, and post-processed similarities.

Each has a name, its source, its needs and the ranks of its queries, so that it can be compared in the same way as the
raw figures. Parameters of post-processing are chosen on the validation split, never on the tested one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hbi_models.caption_conventions import first_captions, video_to_group_ranks
from hbi_models.config_fields import require
from hbi_models.metrics import RetrievalMetrics, text_to_video_ranks, video_to_text_ranks
from hbi_models.post_processing import (
    DUAL_SOFTMAX_TEMPERATURE,
    NEIGHBOUR_WEIGHT,
    NEIGHBOURS,
    QUERYBANK_BETA,
    Querybank,
    dual_softmax,
    nearest_neighbour_norm,
    neighbour_bias,
    querybank_norm,
)
from pipelines.evaluate.documents import POST_PROCESSING_NEEDS
from pipelines.models.encoding import Texts
from pipelines.splits import SplitView, Store

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "dual_softmax": {"temperature": DUAL_SOFTMAX_TEMPERATURE},
    "qb_norm": {"beta": QUERYBANK_BETA},
    "nnn": {"neighbours": NEIGHBOURS, "weight": NEIGHBOUR_WEIGHT},
}
"""Parameters where there is no validation split to choose them on."""

# Each grid holds the published values, so on the validation videos a choice is at least as good.
_GRID: Mapping[str, Sequence[Mapping[str, float]]] = {
    "dual_softmax": [
        {"temperature": value} for value in (1.0, 3.0, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
    ],
    "qb_norm": [{"beta": value} for value in (1.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)],
    "nnn": [
        {"neighbours": neighbours, "weight": weight}
        for neighbours in (1, 4, 16, 64, 256)
        for weight in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    ],
}


@dataclass(frozen=True)
class Scored:
    """Similarities of a split's captions, and of a bank's, with its videos."""

    similarity: Tensor
    """[texts, videos]"""
    owners: Tensor
    """The video of each text."""
    bank: Tensor
    """[bank, videos]; without a bank no rows"""


@dataclass(frozen=True)
class Variant:
    """The ranks of one figure beside the raw ones."""

    name: str
    title: str
    source: str
    ranks: Mapping[str, Tensor]
    """By direction; a direction that the variant does not change, or does not define, is absent."""
    texts: Tensor
    """The rows of the captions that ask, in the order of the ranks of ``text_to_video``."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the raw protocol that it replaces."""
    details: Mapping[str, Any] = field(default_factory=dict)


def convention_variants(scored: Scored) -> Iterator[Variant]:
    """The conventions of other publications for videos with several captions; none if each video has one caption."""
    similarity, owners = scored.similarity, scored.owners
    texts = torch.arange(len(owners))
    # Videos without a caption are refused before (video_to_text_ranks), so with equal numbers each has one.
    if len(owners) == similarity.shape[1]:
        return
    for reduction, title in (
        ("max", "captions of a video as one item, by the best"),
        ("mean", "the same, by the mean"),
    ):
        yield Variant(
            name=f"caption_{reduction}",
            title=title,
            source={"max": "CLIP4Clip's evaluation of MSVD (arXiv 2104.08860)", "mean": "mean of the captions"}[
                reduction
            ],
            ranks={"video_to_text": video_to_group_ranks(similarity, owners, reduction)},  # type: ignore[arg-type]
            texts=texts,
            protocol={
                "video_to_text": f"rank of the video's captions, as one item with their {reduction}, among the videos'"
            },
        )
    first = first_captions(owners)
    alone, own = similarity[first], owners[first]
    yield Variant(
        name="one_caption",
        title="the first caption of each video alone",
        source="MTEB's tasks of MSVD (first caption of a clip)",
        ranks={"text_to_video": text_to_video_ranks(alone, own), "video_to_text": video_to_text_ranks(alone, own)},
        texts=first,
        protocol={
            # The counts of the named protocol are those of all captions.
            "named": None,
            "text_queries": len(first),
            "captions_per_video": {"least": 1, "mean": 1.0, "most": 1},
            "text_to_video": "the first caption of each video is a query",
            "video_to_text": "rank of the video's first caption among the first ones",
        },
    )


def post_processed_variants(
    methods: Sequence[str], scored: Scored, validation: Scored | None, *, validation_split: str
) -> Iterator[Variant]:
    """The figures with each of the ``methods``. Parameters are chosen on ``validation``; without it they are the
    published ones."""
    for method in methods:
        if validation is None:
            parameters, chosen = PUBLISHED[method], "published values"
        else:
            parameters = choose_parameters(method, validation)
            videos = validation.similarity.shape[1]
            chosen = f"best of {len(_GRID[method])} by R@1 on {videos:,} videos of {validation_split}"
        yield Variant(
            name=method,
            title=f"{method.replace('_', ' ')}, needs {POST_PROCESSING_NEEDS[method]}",
            source={
                "dual_softmax": "arXiv 2109.04290",
                "qb_norm": "arXiv 2112.12777",
                "nnn": "arXiv 2410.24114",
            }[method],
            ranks=post_processed_ranks(method, scored, parameters),
            texts=torch.arange(len(scored.owners)),
            protocol={"post_processing": method},
            details={
                "needs": POST_PROCESSING_NEEDS[method],
                "parameters": dict(parameters),
                "parameters_chosen": chosen,
                "bank": len(scored.bank) if method != "dual_softmax" else 0,
            },
        )


def post_processed_ranks(method: str, scored: Scored, parameters: Mapping[str, float]) -> dict[str, Tensor]:
    """Ranks with a method. Methods with a bank of captions correct the videos, and leave video to text unchanged."""
    similarity, owners = scored.similarity, scored.owners
    if method == "dual_softmax":
        temperature = parameters["temperature"]
        return {
            "text_to_video": text_to_video_ranks(dual_softmax(similarity, temperature), owners),
            # The softmax runs over the queries, here the videos, so they have to be the rows.
            "video_to_text": video_to_text_ranks(dual_softmax(similarity.T, temperature).T, owners),
        }
    if method == "qb_norm":
        scores = querybank_norm(similarity, Querybank.of(scored.bank, beta=parameters["beta"]))
    else:
        bias = neighbour_bias(scored.bank, neighbours=int(parameters["neighbours"]), weight=parameters["weight"])
        scores = nearest_neighbour_norm(similarity, bias)
    return {"text_to_video": text_to_video_ranks(scores, owners)}


def choose_parameters(method: str, validation: Scored) -> Mapping[str, float]:
    """The parameters with the best R@1 of text to video; among equal ones the best mean rank decides, then the
    order."""

    def goodness(parameters: Mapping[str, float]) -> tuple[float, float]:
        ranks = post_processed_ranks(method, validation, parameters)["text_to_video"]
        metrics = RetrievalMetrics.from_ranks(ranks)
        return metrics.recall_at_1, -metrics.mean_rank

    return max(_GRID[method], key=goodness)


@dataclass(frozen=True)
class Bank:
    """Training captions, for the post-processing that needs them."""

    store: Store
    """Of the training videos; it may hold the captions' features."""
    texts: Texts

    @property
    def captions(self) -> list[str]:
        """The captions alone."""
        return [text for _, text in self.texts]


def training_bank(view: SplitView, size: int) -> Bank:
    """Up to ``size`` captions of ``view``, drawn by a hash of video and number, so that other videos do not change the
    draw.

    Raises:
        ValueError: there is no caption of a video with frames.
    """
    require(
        len(view) > 0,
        f"post-processing needs a bank of training captions, and no video of the split {view.split} has frames and "
        f"captions ({view.left_out or 'the manifest lists none'}); take qb_norm and nnn out of "
        "evaluation.post_processing",
    )
    captions, videos, numbers = view.texts_of(range(len(view)))
    ids = view.store.video_ids

    def draw(place: int) -> bytes:
        return hashlib.sha256(f"{ids[videos[place]]} {numbers[place]}".encode()).digest()

    drawn = sorted(range(len(captions)), key=draw)[:size]
    return Bank(view.store, [(videos[place], captions[place]) for place in drawn])
