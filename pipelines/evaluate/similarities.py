"""Similarities of all captions with all videos of a split, on Ray.

Videos and texts are spread over actors; each is encoded once and its tokens are merged once. The similarity matrix is
then computed in tiles, also on the actors. No item is padded, dropped or processed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hbi_models.config_fields import require
from hbi_models.configs import RetrievalConfig
from hbi_models.retrieval import counted_levels
from pipelines.evaluate.actors import as_finished, blocks, result_of, start_actors, stop_actors
from pipelines.evaluate.variants import Bank
from pipelines.models.encoding import Levels, Texts, encode_texts_of, encode_videos, on_device
from pipelines.models.initial_weights import load_checkpoint
from pipelines.progress import Progress
from pipelines.recipe.evaluation import EvaluationConfig
from pipelines.recipe.resources import ActorResources
from pipelines.resources.device import compute_device
from pipelines.splits import SplitView, Store


class RetrievalScorerActor:
    """Holds the model: encodes texts and videos, and computes tiles of similarities."""

    def __init__(
        self,
        checkpoint: str,
        config: RetrievalConfig,
        view: SplitView,
        settings: EvaluationConfig,
        bank: Store | None = None,
    ) -> None:
        self._device = compute_device()
        with TemporaryDirectory() as scratch:
            self._model = load_checkpoint(checkpoint, config, Path(scratch)).to(self._device)
        self._view, self._bank = view, bank
        self._rates = settings.level_rates or self._model.config.level_rates
        # Levels that do not count in the score are skipped, because after the encoders merging takes most of the time.
        self._encode: dict[str, Any] = {
            "device": self._device,
            "batch_size": settings.batch_size,
            "num_levels": counted_levels(self._rates),
        }

    @torch.inference_mode()
    def videos(self, positions: Sequence[int]) -> Levels:
        """The levels of the videos at ``positions`` that count in the score."""
        return encode_videos(self._model, self._view.store, positions, **self._encode)

    @torch.inference_mode()
    def texts(self, captions: Texts, of_bank: bool = False) -> Levels:
        """The levels of ``captions`` that count in the score; they are about videos of the view, or of the bank."""
        store = self._bank if of_bank else self._view.store
        assert store is not None
        return encode_texts_of(self._model, store, captions, **self._encode)

    @torch.inference_mode()
    def tile(self, texts: Levels, videos: Levels) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Similarities of a block of texts with a block of videos."""
        scores = self._model.similarity(on_device(texts, self._device), on_device(videos, self._device), self._rates)
        return scores.float().cpu().numpy()


def similarity_matrix(
    view: SplitView,
    bank: Bank | None = None,
    *,
    checkpoint: str,
    config: RetrievalConfig,
    settings: EvaluationConfig,
    resources: ActorResources,
) -> torch.Tensor:
    """Scores of all captions of ``view``, and after them of ``bank``, with all videos of ``view``.

    Returns:
        [texts, videos] in float32.
    """
    captions, owners, _ = view.texts_of(range(len(view)))
    said = [*zip(owners, captions, strict=True), *(() if bank is None else bank.texts)]
    video_blocks = blocks(len(view), settings.tile)
    # No block has captions of both, because they are looked up in different stores.
    bank_blocks = [
        range(len(captions) + block.start, len(captions) + block.stop)
        for block in blocks(len(said) - len(captions), settings.tile)
    ]
    text_blocks = [*blocks(len(captions), settings.tile), *bank_blocks]
    most = max(len(video_blocks), len(text_blocks))
    store = None if bank is None else bank.store
    actors = start_actors(
        RetrievalScorerActor, checkpoint, config, view, settings, store, resources=resources, most=most
    )
    count = len(actors)
    # Features stay in the object store: a tile fetches the two blocks that it needs.
    videos = [actors[i % count].videos.remote(list(block)) for i, block in enumerate(video_blocks)]
    texts = [
        actors[i % count].texts.remote([said[text] for text in block], block.start >= len(captions))
        for i, block in enumerate(text_blocks)
    ]
    encoded = [*video_blocks, *text_blocks]
    with Progress("evaluation", total=len(view) + len(said), unit="texts and videos") as progress:
        for block in as_finished([*videos, *texts]):
            progress.advance(len(encoded[block]))
    # NaN, so that an entry that is never computed has no rank and is noticed.
    matrix = torch.full((len(said), len(view)), torch.nan)
    tiles = [(row, column) for row in range(len(text_blocks)) for column in range(len(video_blocks))]
    scores = [actors[i % count].tile.remote(texts[row], videos[column]) for i, (row, column) in enumerate(tiles)]
    with Progress("evaluation", total=len(tiles), unit="tiles") as progress:
        for tile in as_finished(scores):
            rows, columns = text_blocks[tiles[tile][0]], video_blocks[tiles[tile][1]]
            matrix[rows.start : rows.stop, columns.start : columns.stop] = _whole(
                result_of(scores[tile]), rows, columns
            )
            progress.advance()
    stop_actors(actors)
    return matrix


def _whole(tile: NDArray[np.float32], rows: range, columns: range) -> torch.Tensor:
    """``tile``, checked to have its full shape: an assignment would broadcast a smaller one."""
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
        f"{len(video_ids):,} videos cannot be ranked: their similarities are not numbers, the first that of "
        f"{captions[caption]!r} and {video_ids[video]}. Look for a training that diverged: {checkpoint}"
    )
