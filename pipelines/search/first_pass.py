"""The first pass of a search: one vector per video, and the candidates that a vector library finds among them.

A video's vector is the weighted mean of its unit tokens at every level that counts. Its inner product with a text's
vector is the model's similarity with means in place of maxima. This is only an approximation, so the model itself ranks
the candidates of the first pass.

The library is Faiss: it has wheels for every platform, exact scans and inverted lists with the same
interface, and files that any of its bindings reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from hbi_models.axes import TokenLevel
from hbi_models.similarity import token_weights, unit_tokens
from pipelines.workspace.errors import DamagedFileError

SCANNED = 50_000
"""Up to this number of videos all vectors are compared, in half precision; more are kept in inverted lists."""

_LISTS_PER_ROOT = 4
"""Lists per square root of the number of videos, as the library's guidelines recommend (4 to 16)."""

_TRAINING_PER_LIST = 64
"""Vectors per list that the lists are trained with; the library warns below 39."""

PROBED_FRACTION = 1 / 8
"""The part of the lists that a query searches (benchmarks/search_scale.py shows recall and time)."""


def video_vectors(
    levels: Sequence[TokenLevel], rates: Sequence[float], coalitions: float | None = None
) -> Float[Tensor, "items width"]:
    """The vectors of videos whose levels count with ``rates``: levels with rate 0 are left out.

    ``coalitions`` is the model's setting, and applies to the first level only.
    """
    return torch.cat([vectors for vectors, _ in _pooled(levels, rates, coalitions)], dim=1)


def text_vectors(
    levels: Sequence[TokenLevel], rates: Sequence[float], coalitions: float | None = None
) -> Float[Tensor, "items width"]:
    """The vectors of texts, to be multiplied with those of videos. The weights of the levels are applied here."""
    return torch.cat([rate * vectors for vectors, rate in _pooled(levels, rates, coalitions)], dim=1)


def _pooled(
    levels: Sequence[TokenLevel], rates: Sequence[float], coalitions: float | None
) -> Iterator[tuple[Float[Tensor, "items dim"], float]]:
    for number, (level, rate) in enumerate(zip(levels, rates, strict=True)):
        # A level that does not count would only make every vector wider.
        if rate:
            weights = token_weights(level, None if number else coalitions)
            yield einsum(weights, unit_tokens(level), "items tokens, items tokens dim -> items dim"), rate


class FirstPass:
    """Vectors of all videos; a video is addressed by its position."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "videos width"], *, scanned: int = SCANNED) -> FirstPass:
        """Takes ``vectors`` in, whatever their precision; more than ``scanned`` of them are grouped into lists."""
        count, width = vectors.shape
        if count <= scanned:
            index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        else:
            index = _inverted_lists(vectors)
        # Added in parts, because all vectors in single precision would take twice the memory.
        for start in range(0, count, 1 << 16):
            index.add(np.ascontiguousarray(vectors[start : start + (1 << 16)], np.float32))
        return cls(index)

    @classmethod
    def from_bytes(cls, content: bytes, place: str) -> FirstPass:
        """What :meth:`to_bytes` made.

        Raises:
            DamagedFileError: it is something else; the message names ``place``.
        """
        try:
            return cls(faiss.deserialize_index(np.frombuffer(content, np.uint8)))
        except RuntimeError as error:
            raise DamagedFileError(f"{place} is not an index of vectors, or is damaged: {error}") from error

    def to_bytes(self) -> bytes:
        """A file that Faiss reads."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """Components of a vector."""
        return int(self._index.d)

    def candidates(
        self, vectors: Float32[np.ndarray, "texts width"], count: int
    ) -> list[Int64[np.ndarray, " candidates"]]:
        """Positions of the ``count`` videos with the largest inner products for each text, the largest first.

        There are fewer if the searched lists hold fewer.
        """
        _, found = self._index.search(np.ascontiguousarray(vectors, np.float32), min(count, len(self)))
        # Faiss fills the places for which it has no video with -1.
        return [row[row >= 0] for row in found]


def _inverted_lists(vectors: Float[np.ndarray, "videos width"]) -> Any:
    count, width = vectors.shape
    lists = int(_LISTS_PER_ROOT * math.sqrt(count))
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = max(1, round(lists * PROBED_FRACTION))
    # A fixed seed, so that the same videos are grouped into the same lists.
    sample = np.random.default_rng(0).choice(count, min(count, lists * _TRAINING_PER_LIST), replace=False)
    index.train(np.ascontiguousarray(vectors[np.sort(sample)], np.float32))
    return index
