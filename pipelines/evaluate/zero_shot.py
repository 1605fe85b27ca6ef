"""Retrieval by a pretrained encoder alone, on Ray: texts and frames are encoded once, and pooled in both ways.

Protocol: as ``pipelines.evaluate.retrieval``; captions are as long as the encoder takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hbi_models.config_fields import require
from hbi_models.metric_names import DIRECTIONS
from hbi_models.metrics import RetrievalMetrics, bootstrap_intervals, text_to_video_ranks, video_to_text_ranks
from hbi_models.zero_shot import ZeroShotModel, zero_shot_similarity
from hbi_models.zero_shot_config import ZERO_SHOT_POOLINGS, ZeroShotConfig
from pipelines.evaluate.actors import as_finished, blocks, result_of, start_actors, stop_actors
from pipelines.evaluate.documents import METRICS_FILE
from pipelines.models.clip_weights import local_weights
from pipelines.models.encoding import Levels, encode_texts, encode_videos, on_device
from pipelines.progress import Progress
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.resources.device import compute_device
from pipelines.splits import SplitView
from pipelines.tracker import StageTracker
from pipelines.workspace.storage import Storage


class ZeroShotActor:
    """Holds the encoder: encodes texts and videos, and computes tiles of similarities."""

    def __init__(
        self, config: ZeroShotConfig, weights: Storage | None, view: SplitView, settings: EvaluationConfig
    ) -> None:
        self._device, self._view = compute_device(), view
        with TemporaryDirectory() as scratch:
            self._model = ZeroShotModel(config, local_weights(weights, Path(scratch))).to(self._device).eval()
        self._encode: dict[str, Any] = {"device": self._device, "batch_size": settings.batch_size, "num_levels": 1}

    @torch.inference_mode()
    def videos(self, positions: Sequence[int]) -> Levels:
        """Embeddings of the frames of the videos at ``positions``."""
        return encode_videos(self._model, self._view.store, positions, **self._encode)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Levels:
        """Embeddings of ``captions``."""
        return encode_texts(self._model, captions, **self._encode)

    @torch.inference_mode()
    def tile(self, texts: Levels, videos: Levels) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Similarities of a block of texts with a block of videos, [poolings, texts, videos]."""
        (text,), (video,) = on_device(texts, self._device), on_device(videos, self._device)
        temperature = self._model.config.temperature
        scores = [zero_shot_similarity(text, video, kind, temperature=temperature) for kind in ZERO_SHOT_POOLINGS]
        return torch.stack(scores).float().cpu().numpy()


def zero_shot_matrices(
    view: SplitView,
    captions: Sequence[str],
    *,
    config: ZeroShotConfig,
    weights: Storage | None,
    settings: EvaluationConfig,
    resources: ActorResources,
) -> torch.Tensor:
    """Scores of all ``captions`` with all videos of ``view``, [poolings, texts, videos] in float32."""
    video_blocks, text_blocks = blocks(len(view), settings.tile), blocks(len(captions), settings.tile)
    most = max(len(video_blocks), len(text_blocks))
    actors = start_actors(ZeroShotActor, config, weights, view, settings, resources=resources, most=most)
    count = len(actors)
    # Features stay in the object store: a tile fetches the two blocks that it needs.
    videos = [actors[i % count].videos.remote(list(block)) for i, block in enumerate(video_blocks)]
    texts = [actors[i % count].texts.remote([captions[text] for text in block]) for i, block in enumerate(text_blocks)]
    encoded = [*video_blocks, *text_blocks]
    with Progress("zero_shot", total=len(view) + len(captions), unit="texts and videos") as progress:
        for block in as_finished([*videos, *texts]):
            progress.advance(len(encoded[block]))
    # NaN, so that an entry that is never computed is noticed.
    matrices = torch.full((len(ZERO_SHOT_POOLINGS), len(captions), len(view)), torch.nan)
    tiles = [(row, column) for row in range(len(text_blocks)) for column in range(len(video_blocks))]
    scores = [actors[i % count].tile.remote(texts[row], videos[column]) for i, (row, column) in enumerate(tiles)]
    for tile in as_finished(scores):
        rows, columns = text_blocks[tiles[tile][0]], video_blocks[tiles[tile][1]]
        found = torch.tensor(result_of(scores[tile]))
        # Otherwise the assignment would broadcast a smaller tile.
        expected = (len(ZERO_SHOT_POOLINGS), len(rows), len(columns))
        require(found.shape == expected, f"a tile of {expected} similarities came back with the shape {found.shape}")
        matrices[:, rows.start : rows.stop, columns.start : columns.stop] = found
    stop_actors(actors)
    return matrices


def evaluate_zero_shot(
    output: Storage,
    tracker: StageTracker,
    view: SplitView,
    *,
    config: ZeroShotConfig,
    settings: EvaluationConfig,
    resources: ActorResources,
    seed: int,
    weights: Storage | None = None,
) -> dict[str, float]:
    """Writes the metrics of both ways of pooling, and returns them by ``pooling/direction/name``.

    ``weights`` is the folder of the weights that a tag names; see :mod:`pipelines.models.clip_weights`.

    Raises:
        ValueError: the split holds no video with frames and captions, or the features that the weights give are not
        finite.
    """
    view.require_captions("evaluation.split")
    captions, video_of_text, _ = view.texts_of(range(len(view)))
    matrices = zero_shot_matrices(
        view, captions, config=config, weights=weights, settings=settings, resources=resources
    )
    require(
        not bool(matrices.isnan().any()),
        f"the features of {config.clip.architecture} with {config.clip.pretrained} are not finite; the weights belong "
        "to another architecture, or are damaged",
    )
    owners = torch.tensor(video_of_text)
    document: dict[str, Any] = {
        "split": settings.split,
        "architecture": config.clip.architecture,
        "pretrained": config.clip.pretrained,
        "seed": seed,
        "texts": len(captions),
        "videos": len(view),
        "protocol": "every caption is a query; video to text by the best-ranked caption; no post-processing",
    }
    flat: dict[str, float] = {}
    # Of video to text, each video is one query, so it is a cluster of its own.
    clusters = {"text_to_video": owners, "video_to_text": torch.arange(len(view))}
    for pooling, matrix in zip(ZERO_SHOT_POOLINGS, matrices, strict=True):
        ranks = {
            "text_to_video": text_to_video_ranks(matrix, owners),
            "video_to_text": video_to_text_ranks(matrix, owners),
        }
        document[pooling] = {}
        for direction in DIRECTIONS:
            metrics = RetrievalMetrics.from_ranks(ranks[direction]).as_dict()
            generator = torch.Generator().manual_seed(seed)
            intervals = bootstrap_intervals(
                ranks[direction],
                generator=generator,
                clusters=clusters[direction],
                num_resamples=settings.bootstrap_samples,
            )
            document[pooling][direction] = {
                name: {"value": value, **asdict(intervals[name])} for name, value in metrics.items()
            }
            flat |= {f"{pooling}/{direction}/{name}": value for name, value in metrics.items()}
    output.write_json(METRICS_FILE, document)
    tracker.log_metrics(flat)
    tracker.log_files(output, [METRICS_FILE])
    return flat
