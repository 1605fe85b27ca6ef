"""Probes of what a retrieval model understands: single words, perturbed videos, moments.

Negatives: whether the true caption scores higher than one with a changed word, by class of word, for the model's score
and for baselines. Perturbations: R@1 of text to video with perturbed videos and unchanged captions. Moments: how well
the span that a search returns overlaps the true one. Intervals resample videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from hbi_models.metric_names import PAIR_SCORES
from hbi_models.metrics import ConfidenceInterval, cluster_resamples, text_to_video_ranks
from hbi_models.moments import best_moment
from hbi_models.span_metrics import RECALL_THRESHOLDS, Span, best_overlaps, mean_average_precision
from pipelines.evaluate.actors import blocks, result_of
from pipelines.progress import Progress
from pipelines.splits import SplitView
from pipelines.video.perturbations import LEVELS as PERTURBATIONS
from pipelines.video.perturbations import STRENGTHS


@dataclass(frozen=True)
class Pair:
    """A true caption of a video, and one with a word changed."""

    video: int
    """Its position in the split."""
    caption: str
    negative: str
    kind: str


@dataclass(frozen=True)
class MomentQuery:
    """A text about parts of a video."""

    video: int
    query: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a video are shown, and until when, in seconds."""

    time_s: Sequence[float]
    end_s: float


@dataclass(frozen=True)
class Intervals:
    """95% intervals of means over queries, by resampling videos."""

    resamples: int
    seed: int

    def mean(self, values: Tensor, videos: Tensor) -> dict[str, float]:
        """The mean of ``values`` in percent with its interval."""
        # A generator of its own, so that figures over the same queries come from the same resamples.
        generator = torch.Generator().manual_seed(self.seed)
        drawn = cluster_resamples(videos, generator=generator, num_resamples=self.resamples)
        means = torch.stack([values[rows].mean() for rows in drawn])
        bounds = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        interval = ConfidenceInterval(*(100 * bounds).tolist())
        return {"value": 100 * values.mean().item(), **asdict(interval)}


def probe_negatives(
    actors: Sequence[Any], pairs: Sequence[Pair], video_ids: Sequence[str], *, batch_size: int, intervals: Intervals
) -> tuple[dict[str, Any], pa.Table]:
    """Accuracy of "true caption above changed one" by class and score, and the scores of every pair.

    A pair with equal scores counts half.
    """
    # A dictionary, as a set that keeps its order: a text is scored once, in however many pairs of its video it is.
    asked: dict[int, dict[str, None]] = {}
    for pair in pairs:
        asked.setdefault(pair.video, {}).update({pair.caption: None, pair.negative: None})
    videos = list(asked)
    calls = []
    for number, block in enumerate(blocks(len(videos), batch_size)):
        part = [(videos[place], list(asked[videos[place]])) for place in block]
        calls.append((part, actors[number % len(actors)].scores.remote(part)))
    found: dict[tuple[int, str], dict[str, float]] = {}
    with Progress("negatives", total=len(videos), unit="videos") as progress:
        for part, reference in calls:
            scores = result_of(reference)
            texts = [(video, text) for video, listed in part for text in listed]
            for row, key in enumerate(texts):
                found[key] = {name: float(values[row]) for name, values in scores.items()}
            progress.advance(len(part))
    rows = [
        {
            "video_id": video_ids[pair.video],
            "class": pair.kind,
            "caption": pair.caption,
            "negative": pair.negative,
            "score": name,
            "true": found[pair.video, pair.caption][name],
            "changed": found[pair.video, pair.negative][name],
        }
        for pair in pairs
        for name in PAIR_SCORES
    ]
    table = pa.Table.from_pylist(rows)
    document = {}
    for kind in sorted({pair.kind for pair in pairs}):
        mine = [row for row in rows if row["class"] == kind]
        document[kind] = {
            # Each pair has a row for every score.
            "pairs": len(mine) // len(PAIR_SCORES),
            "videos": len({row["video_id"] for row in mine}),
            **{name: _accuracy([row for row in mine if row["score"] == name], intervals) for name in PAIR_SCORES},
        }
    return document, table


def _accuracy(rows: Sequence[Mapping[str, Any]], intervals: Intervals) -> dict[str, float]:
    true, changed = (torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("true", "changed"))
    right = (true > changed).double() + (true == changed).double() / 2
    places = {name: place for place, name in enumerate(dict.fromkeys(row["video_id"] for row in rows))}
    return intervals.mean(right, torch.tensor([places[row["video_id"]] for row in rows]))


def probe_perturbations(actors: Sequence[Any], view: SplitView, *, tile: int, intervals: Intervals) -> dict[str, Any]:
    """R@1 of text to video by perturbation and strength; strength 0 means unchanged videos."""
    captions, owners, _ = view.texts_of(range(len(view)))
    # The captions stay as they are, so they are encoded once for all perturbations.
    said = list(zip(owners, captions, strict=True))
    video_blocks, text_blocks = blocks(len(view), tile), blocks(len(captions), tile)
    texts = [
        actors[number % len(actors)].texts.remote([said[text] for text in block])
        for number, block in enumerate(text_blocks)
    ]
    right = torch.tensor(owners)

    def recall(name: str | None, strength: int) -> dict[str, float]:
        columns = []
        for number, block in enumerate(video_blocks):
            actor = actors[number % len(actors)]
            places = list(block)
            videos = actor.videos.remote(places) if name is None else actor.perturbed.remote(places, name, strength)
            columns.append([actor.tile.remote(text, videos) for text in texts])
        # [texts, videos]: the tiles of a block of videos below each other, and the blocks side by side.
        matrix = torch.cat([torch.cat([torch.tensor(result_of(part)) for part in column]) for column in columns], dim=1)
        hits = (text_to_video_ranks(matrix, right) <= 1).double()
        return intervals.mean(hits, right)

    with Progress("perturbations", total=1 + len(PERTURBATIONS) * len(STRENGTHS), unit="evaluations") as progress:
        unperturbed = recall(None, 0)
        progress.advance()
        document: dict[str, Any] = {"none": {"recall_at_1": [unperturbed]}}
        for name, amounts in PERTURBATIONS.items():
            measured = [unperturbed]
            for strength in STRENGTHS:
                measured.append(recall(name, strength))
                progress.advance()
            document[name] = {"amounts": list(amounts), "recall_at_1": measured}
    return document


def probe_moments(
    actors: Sequence[Any],
    queries: Sequence[MomentQuery],
    times: Mapping[int, FrameTimes],
    *,
    prior: float,
    batch_size: int,
    intervals: Intervals,
) -> dict[str, Any]:
    """R@1 at three IoUs and mAP of the span that a search returns, and of three baselines.

    Args:
        actors: with the model.
        queries: of videos in ``times``.
        times: of the frames, by position of the video.
        prior: mean fraction of a video that a true span covers, measured on other videos.
        batch_size: videos at once.
        intervals: how to resample.
    """
    by_video: dict[int, list[int]] = {}
    for number, query in enumerate(queries):
        by_video.setdefault(query.video, []).append(number)
    videos = list(by_video)
    spans: dict[str, list[list[Span]]] = {name: [[] for _ in queries] for name in _SPANS}
    calls = []
    for number, block in enumerate(blocks(len(videos), batch_size)):
        listed = [videos[place] for place in block]
        part = [(video, [queries[place].query for place in by_video[video]]) for video in listed]
        calls.append((listed, actors[number % len(actors)].relevance.remote(part)))
    with Progress("moments", total=len(queries), unit="queries") as progress:
        for listed, reference in calls:
            places = [(video, place) for video in listed for place in by_video[video]]
            for (video, place), relevance in zip(places, result_of(reference), strict=True):
                for name, span in _spans(relevance, times[video], prior):
                    # A search returns one span, so the ranking of spans has one entry.
                    spans[name][place] = [span]
            progress.advance(len(places))
    right = [query.spans for query in queries]
    clusters = torch.tensor([query.video for query in queries])
    document: dict[str, Any] = {"queries": len(queries), "videos": len(videos), "prior": prior}
    for name, predicted in spans.items():
        overlaps = torch.tensor(best_overlaps(predicted, right), dtype=torch.float64)
        precisions = torch.tensor(mean_average_precision(predicted, right), dtype=torch.float64)
        document[name] = {
            **{
                f"recall_at_1_iou_{threshold}": intervals.mean((overlaps >= threshold).double(), clusters)
                for threshold in RECALL_THRESHOLDS
            },
            "mean_average_precision": intervals.mean(precisions, clusters),
            "mean_iou": intervals.mean(overlaps, clusters),
        }
    return document


_SPANS = ("search", "whole clip", "best frame ± 1 s", "prior's length at the best frame")


def _spans(relevance: Sequence[float], times: FrameTimes, prior: float) -> Iterator[tuple[str, Span]]:
    """The span of a search, and those of the baselines, all within the video."""
    # A model may use fewer frames than are stored; it has no relevance for the others.
    starts = times.time_s[: len(relevance)]
    end_s = times.end_s if len(starts) == len(times.time_s) else times.time_s[len(starts)]
    moment = best_moment(relevance, starts, end_s)
    yield "search", (moment.start_s, moment.end_s)
    begin = float(starts[0])
    yield "whole clip", (begin, end_s)
    # The earliest of equally relevant frames.
    best = max(range(len(relevance)), key=lambda frame: (relevance[frame], -frame))
    # A frame is shown until the next one, the last frame until the end.
    middle = (starts[best] + [*starts[1:], end_s][best]) / 2
    for name, half in (
        ("best frame ± 1 s", 1.0),
        ("prior's length at the best frame", prior * (end_s - begin) / 2),
    ):
        yield name, (max(middle - half, begin), min(middle + half, end_s))
