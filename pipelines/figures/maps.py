"""The interaction of the words of a text and the frames of a video at three levels, as data.

``reading`` computes it with a model, the other modules of this room draw it, and ``InteractionMaps.document`` gives it
as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

Kind = Literal["exact", "estimator", "difference"]
KINDS: tuple[Kind, ...] = ("exact", "estimator", "difference")
"""``difference``: the estimated interaction minus the exact one."""

Map = NDArray[np.float32]
Members = tuple[tuple[int, ...], ...]

_DIGITS = 7
"""Significant digits of a float32."""


@dataclass(frozen=True, kw_only=True)
class LevelMap:
    """One level: its words and frames, and their cosines and interactions, ``[words, frames]``.

    Words and frames are in the order of the first word and the first frame that they were merged from.
    """

    name: str
    words: Members
    """For each merged word the positions of its tokens in the text."""
    frames: Members
    """For each merged frame the positions of its frames in the video."""
    word_weights: Map
    """Importance in the similarity; the weights of all words sum to 1."""
    frame_weights: Map
    similarity: float
    """Of the text and the video at this level, in [-1, 1]."""
    cosines: Map
    interactions: Mapping[Kind, Map]
    """In the units of the cosines."""


@dataclass(frozen=True, kw_only=True)
class InteractionMaps:
    """The interactions of a text and a video, as a model computes them."""

    text: str
    tokens: tuple[str, ...]
    """The special start and end tokens are the first and the last."""
    video: str
    times_s: tuple[float, ...]
    """Of the frames, from the start of the file."""
    images: Sequence[UInt8[np.ndarray, "height width 3"]]
    """The frames as the model sees them."""
    levels: tuple[LevelMap, ...]

    @property
    def kinds(self) -> list[Kind]:
        """Which interactions there are."""
        return list(self.levels[0].interactions)

    def is_special(self, token: int) -> bool:
        """Whether the token at a position is the start or the end."""
        return token in (0, len(self.tokens) - 1)

    def phrase(self, words: Sequence[int]) -> str:
        """The tokens at these positions as text; "…" stands where some between them are left out."""
        parts = [
            f"{'… ' if position and token - words[position - 1] > 1 else ''}{self.tokens[token]}"
            for position, token in enumerate(words)
        ]
        # A piece that ends in "‑" goes on in the next one.
        return " ".join(parts).replace("‑ ", "")

    def document(self) -> dict[str, Any]:
        """Everything except the pictures, as JSON."""
        return {
            "text": self.text,
            "video": self.video,
            "tokens": [
                {"text": token, "special": self.is_special(position)} for position, token in enumerate(self.tokens)
            ],
            "frames": [{"time_s": _rounded(time)} for time in self.times_s],
            "unit": "cosine similarity",
            "levels": [
                {
                    "level": level.name,
                    "similarity": _rounded(level.similarity),
                    "words": [
                        {"text": self.phrase(members), "tokens": list(members), "weight": _rounded(weight)}
                        for members, weight in zip(level.words, level.word_weights, strict=True)
                    ],
                    "frames": [
                        {"frames": list(members), "weight": _rounded(weight)}
                        for members, weight in zip(level.frames, level.frame_weights, strict=True)
                    ],
                    "cosine": _rows(level.cosines),
                    "interaction": {kind: _rows(values) for kind, values in level.interactions.items()},
                }
                for level in self.levels
            ],
        }


def _rows(values: Map) -> list[list[float]]:
    return [[_rounded(value) for value in row] for row in values]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
