"""Retrieval evaluation on Ray: R@1/5/10/50, median and mean rank, both ways, with intervals.

Protocol: every caption is a text-to-video query; video-to-text counts the best-ranked caption of
the video. No post-processing of the similarities. Intervals resample videos, with all their captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from hbi_models.configs import RetrievalConfig
from hbi_models.metric_names import DIRECTIONS
from hbi_models.metrics import RetrievalMetrics, bootstrap_intervals, text_to_video_ranks, video_to_text_ranks
from pipelines.datasets.protocols import NamedProtocol
from pipelines.evaluate.documents import (
    BANK_FILE,
    METRICS_FILE,
    RANKS_FILE,
    TOP_VIDEOS_FILE,
    VARIANTS_FILE,
    protocol_tags,
)
from pipelines.evaluate.protocol import retrieval_protocol
from pipelines.evaluate.similarities import require_ranked, similarity_matrix
from pipelines.evaluate.variants import Bank, Scored, convention_variants, post_processed_variants
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.splits import SplitView
from pipelines.tracker import StageTracker
from pipelines.workspace.records import RANKS, TOP_VIDEOS, VARIANT_RANKS
from pipelines.workspace.storage import Storage

TOP_VIDEOS_SHOWN = 5


def evaluate_retrieval(
    output: Storage,
    tracker: StageTracker,
    view: SplitView,
    *,
    checkpoint: str,
    config: RetrievalConfig,
    settings: EvaluationConfig,
    resources: ActorResources,
    seed: int,
    dataset: str,
    missing_videos: int = 0,
    validation: SplitView | None = None,
    bank: Bank | None = None,
    named: NamedProtocol | None = None,
) -> dict[str, float]:
    """Writes metrics, ranks and the best videos of each text, and returns the metrics by ``direction/name``.

    Args:
        output: the stage's folder.
        tracker: receives the metrics.
        view: the videos and their captions.
        checkpoint: folder of ours or file of the published code.
        config: settings of the model, used if the checkpoint is a published file.
        settings: what to compute.
        resources: actors.
        seed: of the resampling.
        dataset: its name, for the protocol.
        missing_videos: how many videos of the split have no file.
        validation: the split on which parameters of post-processing are chosen; None = the published ones are used.
        bank: training captions, for the post-processing that needs them.
        named: the protocol of the field that the data asks for.

    Raises:
        ValueError: the split holds no video with frames and captions, or a query could not be ranked.
    """
    view.require_captions("evaluation.split")
    captions, video_of_text, caption_numbers = view.texts_of(range(len(view)))

    banked = [] if bank is None else bank.captions

    def scored(view: SplitView) -> Scored:
        captions, video_of_text, _ = view.texts_of(range(len(view)))
        matrix = similarity_matrix(
            view, bank, checkpoint=checkpoint, config=config, settings=settings, resources=resources
        )
        require_ranked(matrix, [*captions, *banked], view.store.video_ids, checkpoint)
        return Scored(matrix[: len(captions)], torch.tensor(video_of_text), matrix[len(captions) :])

    tested = scored(view)
    matrix, owners = tested.similarity, tested.owners
    ranks = {
        "text_to_video": text_to_video_ranks(matrix, owners),
        "video_to_text": video_to_text_ranks(matrix, owners),
    }
    ids = view.store.video_ids
    protocol = retrieval_protocol(
        dataset=dataset,
        split=settings.split,
        video_ids=ids,
        captions=captions,
        video_of_text=video_of_text,
        missing_videos=missing_videos + view.without_frames,
        videos_without_caption=view.without_texts,
        checkpoint=checkpoint,
        seed=seed,
        named=named,
    )
    document: dict[str, Any] = {
        "split": settings.split,
        "checkpoint": checkpoint,
        "seed": seed,
        "texts": len(captions),
        "videos": len(view),
        "protocol": protocol,
    }
    flat = {
        "texts": float(len(captions)),
        "videos": float(len(view)),
        "missing_videos": float(protocol["missing_videos"]),
        "captions_per_video": protocol["captions_per_video"]["mean"],
    }

    def measured(ranks: Mapping[str, torch.Tensor], texts: torch.Tensor) -> dict[str, Any]:
        clusters = {"text_to_video": owners[texts], "video_to_text": torch.arange(len(view))}
        return {
            direction: _with_intervals(ranks[direction], clusters[direction], settings.bootstrap_samples, seed)
            for direction in DIRECTIONS
            if direction in ranks
        }

    document |= measured(ranks, torch.arange(len(captions)))
    flat |= _flat(document)
    # Parameters that were chosen on the tested videos would flatter the figures.
    chosen_on = None
    if settings.post_processing and validation is not None and settings.split != "val":
        chosen_on = scored(validation)
    variants = [
        *convention_variants(tested),
        *post_processed_variants(settings.post_processing, tested, chosen_on, validation_split="val"),
    ]
    document["variants"] = {
        variant.name: {
            "title": variant.title,
            "source": variant.source,
            **variant.details,
            "protocol": {**protocol, **variant.protocol},
            **measured(variant.ranks, variant.texts),
        }
        for variant in variants
    }
    for name, values in document["variants"].items():
        flat |= {f"{name}/{metric}": value for metric, value in _flat(values).items()}
    queries = [(ids[video], number) for video, number in zip(video_of_text, caption_numbers, strict=True)]
    everything = torch.arange(len(captions))
    output.write_table(RANKS_FILE, pa.Table.from_pylist(list(_rank_rows(ranks, everything, queries, ids)), RANKS))
    output.write_table(
        VARIANTS_FILE,
        pa.Table.from_pylist(
            [
                {"variant": variant.name, **row}
                for variant in variants
                for row in _rank_rows(variant.ranks, variant.texts, queries, ids)
            ],
            VARIANT_RANKS,
        ),
    )
    output.write_table(
        TOP_VIDEOS_FILE, _top_videos(matrix, ranks["text_to_video"], view, captions, video_of_text, caption_numbers)
    )
    if banked:
        # A caption may hold line ends, and the file has a line for each.
        output.write_bytes(BANK_FILE, "".join(f"{' '.join(caption.split())}\n" for caption in banked).encode())
    output.write_json(METRICS_FILE, document)
    tracker.log_metrics(flat)
    tracker.log_tags(protocol_tags(protocol))
    tracker.log_files(output, [METRICS_FILE])
    return flat


def _with_intervals(ranks: torch.Tensor, clusters: torch.Tensor, resamples: int, seed: int) -> dict[str, Any]:
    intervals = bootstrap_intervals(
        ranks, generator=torch.Generator().manual_seed(seed), clusters=clusters, num_resamples=resamples
    )
    metrics = RetrievalMetrics.from_ranks(ranks).as_dict()
    return {name: {"value": value, **asdict(intervals[name])} for name, value in metrics.items()}


def _flat(document: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a document under the names of curves: ``direction/metric``."""
    return {
        f"{direction}/{name}": metric["value"]
        for direction in DIRECTIONS
        for name, metric in document.get(direction, {}).items()
    }


def _rank_rows(
    ranks: Mapping[str, torch.Tensor],
    texts: torch.Tensor,
    queries: Sequence[tuple[str, int]],
    video_ids: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A row per query; ``texts`` are the captions that ask, by their place in ``queries``."""
    if "text_to_video" in ranks:
        for text, rank in zip(texts.tolist(), ranks["text_to_video"].tolist(), strict=True):
            video, caption = queries[text]
            yield {"direction": "text_to_video", "video_id": video, "caption_index": caption, "rank": rank}
    if "video_to_text" in ranks:
        for video, rank in zip(video_ids, ranks["video_to_text"].tolist(), strict=True):
            yield {"direction": "video_to_text", "video_id": video, "rank": rank}


def _top_videos(
    matrix: torch.Tensor,
    ranks: torch.Tensor,
    view: SplitView,
    captions: Sequence[str],
    video_of_text: Sequence[int],
    caption_numbers: Sequence[int],
) -> pa.Table:
    """The best videos of each caption."""
    ids = view.store.video_ids
    best = matrix.topk(min(TOP_VIDEOS_SHOWN, len(ids)), dim=1)
    own = matrix.gather(1, torch.tensor(video_of_text)[:, None])[:, 0]
    return pa.table(
        {
            "video_id": [ids[video] for video in video_of_text],
            "caption_index": list(caption_numbers),
            "caption": list(captions),
            "rank": ranks.double().numpy(),
            "score": own.numpy(),
            "top_videos": [[ids[video] for video in row] for row in best.indices.tolist()],
            "top_scores": best.values.tolist(),
        },
        schema=TOP_VIDEOS,
    )
