"""Queries against an index: candidates by one vector each, then ranked by the model's own similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from hbi_models.config_fields import require
from hbi_models.moments import Moment, best_moment, frame_relevance
from hbi_models.retrieval import RetrievalModel, level_interaction
from pipelines.models.encoding import Encoder, Levels, encode_texts, on_host
from pipelines.models.folder import MODEL
from pipelines.models.one_video import frames_of
from pipelines.models.weights import load_encoder
from pipelines.resources.device import compute_device
from pipelines.search.bank import Bank, Correction
from pipelines.search.features import Clip, FeatureStore, level_sizes, together
from pipelines.search.first_pass import FirstPass, text_vectors
from pipelines.search.index_folder import VECTORS, Segment, features_pool, read_current
from pipelines.search.limits import check_counts, check_query
from pipelines.video.frame_store import FrameStore, decode_images, stack_frames
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.shards import SHARDS
from pipelines.workspace.storage import Storage

CANDIDATES = 200
"""Videos that the model ranks for each query."""

NO_MAP = (
    "this index was made by a pretrained encoder alone, which compares whole texts with frames and not their words: "
    "there is no interaction of words and frames; train a model, and make the index with it"
)

_TEXT_BATCH = 64


@dataclass(frozen=True, slots=True)
class Match:
    """A video that a query found."""

    video_id: str
    uri: str
    score: float
    """The model's similarity, the larger the better."""
    moment: Moment
    """Where in the video it matches best."""
    frames: int
    """Number of frames that the model saw."""


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a query; long words consist of several."""

    text: str
    special: bool
    """Whether it is the start or the end of the text."""


@dataclass(frozen=True, slots=True)
class InteractionMap:
    """The exact Banzhaf interaction of every word of a text and every frame of a video, in units of the cosine."""

    words: Sequence[Word]
    time_s: Sequence[float]
    values: Sequence[Sequence[float]]
    """A row per word, a column per frame."""
    score: float
    """The model's similarity of text and video."""
    moment: Moment


class Searcher:
    """An index and its model in this process.

    Args:
        uri: folder or URI of the index.

    Raises:
        FileNotFoundError: there is no finished index.
        DamagedFileError: a part of it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self._root = Storage(uri)
        current = read_current(self._root)
        self.artifact = self._root.folder(current["artifact"])
        with TemporaryDirectory() as scratch:
            loaded = load_encoder(self.artifact.folder(MODEL), Path(scratch))
        self._device = compute_device()
        self.model: Encoder = loaded.to(self._device)
        self.frames = frames_of(self.artifact.folder(MODEL).uri)
        self._tokenizer = self.model.tokenizer
        self._index = self.artifact.read_table(INDEX_FILE).combine_chunks()
        self.first_pass = FirstPass.from_bytes(self.artifact.read_bytes(VECTORS), self.artifact.place(VECTORS))
        pool = features_pool(self._root, current["features"]).storage
        self._features = FeatureStore(pool, self._index, level_sizes(self.model))
        self._frames_pool = self._root.folder(SHARDS, current["frames"])
        self.bank = Bank.read(self._root.folder(current["bank"])) if "bank" in current else None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def video_ids(self) -> list[str]:
        """The videos, in the order of their positions."""
        ids: list[str] = self._index.column("video_id").to_pylist()
        return ids

    @property
    def explains(self) -> bool:
        """Whether there is a map of words and frames: a pretrained encoder alone compares whole texts with frames."""
        return isinstance(self.model, RetrievalModel)

    @torch.inference_mode()
    def search(
        self,
        queries: Sequence[str],
        *,
        top: int = 10,
        candidates: int = CANDIDATES,
        correction: Correction | None = None,
    ) -> list[list[Match]]:
        """The best videos for each query, the best first; videos with equal scores in the order of their ids.

        Args:
            queries: texts.
            top: how many videos for each.
            candidates: how many results of the first pass the model ranks; with the number of videos it ranks all.
            correction: how to correct the order of the candidates for videos that are found too often; the scores stay
                the model's.

        Raises:
            ValueError: a query is empty or too long, a number is not positive, or the index has no bank to correct by.
        """
        for query in queries:
            check_query(query)
        if not queries:
            return []
        return self.find(self.encode(queries), top=top, candidates=candidates, correction=correction)

    @torch.inference_mode()
    def find(
        self,
        texts: Levels,
        *,
        top: int = 10,
        candidates: int = CANDIDATES,
        correction: Correction | None = None,
    ) -> list[list[Match]]:
        """As :meth:`search`, for texts whose levels are known."""
        check_counts(top, candidates)
        require(
            correction is None or self.bank is not None,
            f"the index {self._root.place()} has no bank of training captions to correct a ranking by; make it again "
            "with --indexing.bank FILE",
        )
        config = self.model.config
        vectors = text_vectors(texts, config.level_rates, config.game.coalitions).float().numpy()
        found = self.first_pass.candidates(vectors, candidates)
        # In the order of the index, which is that of the video ids: _rank sorts stably, so equal scores stay in it.
        return [
            self._rank(_item(texts, number), np.sort(positions), top, correction)
            for number, positions in enumerate(found)
        ]

    def _rank(self, text: Levels, positions: Any, top: int, correction: Correction | None) -> list[Match]:
        if not len(positions):
            return []
        clips = self._features.clips(positions.tolist())
        videos = together(clips)
        scores = self._similarity(text, videos)
        order = scores
        if correction is not None and self.bank is not None:
            order = self.bank.corrected(scores, positions, correction)
        best = order.argsort(descending=True, stable=True)[:top]
        relevance = frame_relevance(
            text[0], videos[0].map(lambda tensor: tensor[best]), self.model.config.game.coalitions
        )
        matches = []
        for place, row in zip(best.tolist(), relevance, strict=True):
            clip, position = clips[place], int(positions[place])
            # Levels are padded to the longest video, and the mean that a moment stands out from is that of real frames.
            moment = best_moment(row[: len(clip.time_s)].tolist(), clip.time_s, clip.end_s)
            matches.append(
                Match(
                    video_id=self._cell("video_id", position),
                    uri=self._cell("uri", position),
                    score=float(scores[place]),
                    moment=moment,
                    frames=len(clip.time_s),
                )
            )
        return matches

    @torch.inference_mode()
    def interaction(self, query: str, clip: Clip) -> InteractionMap:
        """The interaction of the words of ``query`` and the frames of ``clip``, at the entity level.

        Raises:
            ValueError: the query is empty or too long, or the index is of a pretrained encoder alone.
        """
        check_query(query)
        require(self.explains, NO_MAP)
        text = self.encode([query])
        words, frames = text[0], clip.levels[0]
        # [words, frames] of the one pair.
        values = level_interaction(words, frames)[0, :, : len(clip.time_s)]
        relevance = frame_relevance(words, frames, self.model.config.game.coalitions)[0, : len(clip.time_s)]
        pieces = self._tokenizer.shown_pieces(query)
        return InteractionMap(
            words=[Word(text, special) for text, special in pieces],
            time_s=clip.time_s,
            # A model that reads padding has rows for it.
            values=values[: len(pieces)].tolist(),
            score=float(self._similarity(text, clip.levels)[0]),
            moment=best_moment(relevance.tolist(), clip.time_s, clip.end_s),
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Levels:
        """The levels of ``texts``."""
        return encode_texts(self.model, texts, device=self._device, batch_size=_TEXT_BATCH)

    @torch.inference_mode()
    def encode_frames(self, images: Sequence[bytes]) -> Levels:
        """The levels of a video whose frames are ``images``, sampled as :attr:`frames` says."""
        batch = stack_frames(
            [decode_images(images)],
            image_size_px=self.model.clip.image_size_px,
            max_frames=self.model.config.max_frames,
        )
        levels = self.model.encode_video(self.model.video_batch(batch.frames, batch.mask))
        return on_host(levels)

    def _similarity(self, text: Levels, videos: Levels) -> torch.Tensor:
        return self.model.similarity(text, videos)[0]

    def clip(self, video_id: str) -> Clip:
        """The features of a video of the index.

        Raises:
            KeyError: there is no such video.
        """
        return self._features.clips([self._position(video_id)])[0]

    def images(self, video_id: str) -> list[bytes]:
        """The stored frames of a video as JPEG or PNG.

        Raises:
            KeyError: there is no such video.
        """
        row = self._index.slice(self._position(video_id), 1).select(["video_id", "key", "frames_shard", "frames_row"])
        return FrameStore(self._frames_pool, row.rename_columns(["video_id", "key", "shard", "row"])).encoded(0)

    def segment(self, video_id: str) -> Segment:
        """The file of a video.

        Raises:
            KeyError: there is no such video.
        """
        (row,) = self._index.slice(self._position(video_id), 1).select(["uri", "start_s", "end_s"]).to_pylist()
        return Segment(**row)

    def _position(self, video_id: str) -> int:
        position = pc.index(self._index.column("video_id"), pa.scalar(video_id)).as_py()
        if position < 0:
            raise KeyError(f"the index has no video {video_id!r}")
        return int(position)

    def _cell(self, column: str, position: int) -> str:
        return str(self._index.column(column)[position].as_py())


def _item(levels: Levels, number: int) -> Levels:
    return tuple(level.map(lambda tensor: tensor[number : number + 1]) for level in levels)
