"""Retrieval evaluation on Ray: R@1/5/10/50, median and mean rank, both ways, with intervals.

Videos and texts are spread over actors; each is encoded once and merged once. The similarity
matrix is then computed in tiles, also on the actors. Nothing is padded, dropped or done twice.

Protocol: every caption is a text-to-video query; video-to-text counts the best-ranked caption of
the video. No post-processing of the similarities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from hbi_models.configs import RetrievalConfig, require
from hbi_models.metric_names import DIRECTIONS
from hbi_models.metrics import RetrievalMetrics, bootstrap_intervals, text_to_video_ranks, video_to_text_ranks
from hbi_models.retrieval import counted_levels
from pipelines.evaluate.actors import as_finished, blocks, start_actors
from pipelines.evaluate.documents import METRICS_FILE, RANKS_FILE, TOP_VIDEOS_FILE
from pipelines.models.encoding import Levels, encode_texts_of, encode_videos
from pipelines.models.initial_weights import load_checkpoint
from pipelines.progress import Progress
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.resources.device import compute_device
from pipelines.splits import SplitView
from pipelines.tracker import StageTracker
from pipelines.workspace.records import RANKS, TOP_VIDEOS
from pipelines.workspace.storage import Storage

logger = logging.getLogger(__name__)
TOP_VIDEOS_SHOWN = 5


class RetrievalScorerActor:
    """Holds the model: encodes texts and videos, and computes tiles of similarities."""

    def __init__(self, checkpoint: str, config: RetrievalConfig, view: SplitView, settings: EvaluationConfig) -> None:
        self._device = compute_device()
        with TemporaryDirectory() as scratch:
            self._model = load_checkpoint(checkpoint, config, Path(scratch)).to(self._device)
        self._view = view
        self._rates = settings.level_rates or self._model.config.level_rates
        # Merging to levels that do not count in the score would take most of the time above the encoders.
        self._encode: dict[str, Any] = {
            "device": self._device,
            "batch_size": settings.batch_size,
            "num_levels": counted_levels(self._rates),
        }

    @torch.inference_mode()
    def videos(self, positions: Sequence[int]) -> Levels:
        """Levels of the videos at ``positions``, those that count in the score."""
        return encode_videos(self._model, self._view.store, positions, **self._encode)

    @torch.inference_mode()
    def texts(self, captions: Sequence[tuple[int, str]]) -> Levels:
        """Levels of ``captions``, each with the position of its video: those that count in the score."""
        return encode_texts_of(self._model, self._view.store, captions, **self._encode)

    @torch.inference_mode()
    def tile(self, texts: Levels, videos: Levels) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Similarities of a block of texts with a block of videos."""
        scores = self._model.similarity(self._here(texts), self._here(videos), self._rates)
        return scores.float().cpu().numpy()

    def _here(self, levels: Levels) -> Levels:
        return tuple(level.map(lambda tensor: tensor.to(self._device)) for level in levels)


def similarity_matrix(
    view: SplitView,
    captions: Sequence[str],
    *,
    checkpoint: str,
    config: RetrievalConfig,
    settings: EvaluationConfig,
    resources: ActorResources,
) -> torch.Tensor:
    """Scores of all ``captions`` with all videos of ``view``, [texts, videos] in float32."""
    video_blocks = blocks(len(view), settings.tile)
    text_blocks = blocks(len(captions), settings.tile)
    most = max(len(video_blocks), len(text_blocks))
    actors = start_actors(RetrievalScorerActor, checkpoint, config, view, settings, resources=resources, most=most)
    count = len(actors)
    # Features stay in the object store: a tile fetches the two blocks that it needs.
    videos = [actors[i % count].videos.remote(list(block)) for i, block in enumerate(video_blocks)]
    _, owners, _ = view.texts_of(range(len(view)))
    said = list(zip(owners, captions, strict=True))
    texts = [actors[i % count].texts.remote([said[text] for text in block]) for i, block in enumerate(text_blocks)]
    encoded = [*video_blocks, *text_blocks]
    with Progress("evaluation", total=len(view) + len(captions), unit="texts and videos") as progress:
        for block in as_finished([*videos, *texts]):
            progress.advance(len(encoded[block]))
    # What is not computed is no number, and has no rank.
    matrix = torch.full((len(captions), len(view)), torch.nan)
    tiles = [(row, column) for row in range(len(text_blocks)) for column in range(len(video_blocks))]
    scores = [actors[i % count].tile.remote(texts[row], videos[column]) for i, (row, column) in enumerate(tiles)]
    with Progress("evaluation", total=len(tiles), unit="tiles") as progress:
        for tile in as_finished(scores):
            rows, columns = text_blocks[tiles[tile][0]], video_blocks[tiles[tile][1]]
            matrix[rows.start : rows.stop, columns.start : columns.stop] = _whole(ray.get(scores[tile]), rows, columns)
            progress.advance()
    for member in actors:
        ray.kill(member)
    return matrix


def _whole(tile: NDArray[np.float32], rows: range, columns: range) -> torch.Tensor:
    """``tile`` with its similarities of all texts and videos of a block; fewer would be spread over all."""
    require(
        tile.shape == (len(rows), len(columns)),
        f"a tile of {len(rows)} texts and {len(columns)} videos came back with the shape {tile.shape}",
    )
    return torch.tensor(tile)


def require_ranked(matrix: torch.Tensor, captions: Sequence[str], video_ids: Sequence[str], checkpoint: str) -> None:
    """Checks that every caption and every video can be ranked by the similarities in ``matrix``, [captions, videos].

    Raises:
        ValueError: some cannot; the message says how many, names the first, and says what to do.
    """
    unranked = matrix.isnan()
    if not unranked.any():
        return
    caption, video = unranked.nonzero()[0].tolist()
    raise ValueError(
        f"{int(unranked.any(dim=1).sum()):,} of {len(captions):,} captions and {int(unranked.any(dim=0).sum()):,} of "
        f"{len(video_ids):,} videos cannot be ranked: their similarities are no numbers, the first that of "
        f"{captions[caption]!r} and {video_ids[video]}. Look for a training that diverged: {checkpoint}"
    )


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
) -> dict[str, float]:
    """Writes metrics, ranks and the best videos of each text, and returns the metrics by ``direction/name``.

    Raises:
        ValueError: the split holds no video with frames and captions, or a query could not be ranked.
    """
    captions, video_of_text, caption_numbers = view.texts_of(range(len(view)))
    if not captions:
        raise ValueError(
            f"the split {settings.split!r} holds {len(view)} videos and no caption; choose evaluation.split among "
            "those that the manifest lists"
        )
    matrix = similarity_matrix(
        view, captions, checkpoint=checkpoint, config=config, settings=settings, resources=resources
    )
    require_ranked(matrix, captions, view.store.video_ids, checkpoint)
    owners = torch.tensor(video_of_text)
    ranks = {
        "text_to_video": text_to_video_ranks(matrix, owners),
        "video_to_text": video_to_text_ranks(matrix, owners),
    }
    document: dict[str, Any] = {
        "split": settings.split,
        "checkpoint": checkpoint,
        "seed": seed,
        "texts": len(captions),
        "videos": len(view),
        "protocol": "every caption is a query; video to text by the best-ranked caption; no post-processing",
    }
    flat: dict[str, float] = {"texts": float(len(captions)), "videos": float(len(view))}
    for direction in DIRECTIONS:
        metrics = RetrievalMetrics.from_ranks(ranks[direction]).as_dict()
        intervals = bootstrap_intervals(
            ranks[direction],
            generator=torch.Generator().manual_seed(seed),
            num_resamples=settings.bootstrap_samples,
        )
        document[direction] = {name: {"value": value, **asdict(intervals[name])} for name, value in metrics.items()}
        flat |= {f"{direction}/{name}": value for name, value in metrics.items()}
    ids = view.store.video_ids
    table = pa.table(
        {
            "direction": ["text_to_video"] * len(captions) + ["video_to_text"] * len(ids),
            "video_id": [ids[video] for video in video_of_text] + ids,
            "caption_index": [*caption_numbers, *[None] * len(ids)],
            "rank": torch.cat([ranks[direction].double() for direction in DIRECTIONS]).numpy(),
        },
        schema=RANKS,
    )
    output.write_table(RANKS_FILE, table)
    output.write_table(
        TOP_VIDEOS_FILE, _top_videos(matrix, ranks["text_to_video"], view, captions, video_of_text, caption_numbers)
    )
    output.write_json(METRICS_FILE, document)
    tracker.log_metrics(flat)
    tracker.log_files(output, [METRICS_FILE])
    return flat


def _top_videos(
    matrix: torch.Tensor,
    ranks: torch.Tensor,
    view: SplitView,
    captions: Sequence[str],
    video_of_text: Sequence[int],
    caption_numbers: Sequence[int],
) -> pa.Table:
    """What each caption finds first."""
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
