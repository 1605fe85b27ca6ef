"""The drawing area of a figure in inches, and the layout of the words and frames on it.

Words that do not fit side by side are slanted, phrases are broken into lines, and the sheet grows with the number of
frames, so that 64 words and frames are as legible as 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from pipelines.figures.maps import InteractionMaps, Members
from pipelines.figures.style import FAINT, INK, PAPER, SOFT, line_height, space, text_width, wrapped, write

MARGIN = 0.35
PAD = 0.06
"""Between the edge of a box and what is in it."""

# Inches; _SIZES and _TIME_SIZE are points.
_NARROWEST, _WIDEST_FOR_WORDS, _WIDEST = 7.5, 13.0, 25.0
_LARGEST_THUMBNAIL, _SMALLEST_THUMBNAIL = 1.0, 0.3
_FRAME_GAP, _BOX_GAP, _WORD_GAP, _LARGEST_GAP = 0.03, 0.14, 0.06, 0.8
_SIZES = (9.0, 8.0, 7.0, 6.0)
_MOST_LINES = 12
_SLANT_DEGREES = 55
_TIME_SIZE = 6.5


@dataclass(frozen=True)
class Place:
    """Where a thing stands across the sheet: its middle, and half its width."""

    middle: float
    half: float


@dataclass(frozen=True)
class Piece:
    """A token as it is written."""

    text: str
    is_special: bool


@dataclass(frozen=True)
class WordRow:
    """The words or phrases of a level: where they stand, and the lines that each is broken into."""

    places: list[Place]
    lines: list[list[list[Piece]]]
    size_pt: float
    height: float
    is_slanted: bool = False


@dataclass(frozen=True)
class Sheet:
    """The width of the drawing area and the side of a thumbnail, in inches."""

    width: float
    thumbnail: float

    @classmethod
    def of(cls, maps: InteractionMaps) -> Sheet:
        """The sheet that holds every level of ``maps``."""
        side_by_side = sum(text_width(token, _SIZES[0]) + 2 * PAD + _WORD_GAP for token in maps.tokens)
        words = min(side_by_side, _WIDEST_FOR_WORDS)
        gaps = max(_frame_gaps(level.frames) for level in maps.levels)
        count = len(maps.images)
        # Large pictures and words side by side widen a sheet up to a limit. Only pictures that would become too small
        # widen it further.
        comfortable = min(gaps + count * _LARGEST_THUMBNAIL, _WIDEST_FOR_WORDS)
        inner = min(max(_NARROWEST, words, comfortable, gaps + count * _SMALLEST_THUMBNAIL), _WIDEST)
        return cls(inner + 2 * MARGIN, min(_LARGEST_THUMBNAIL, (inner - gaps) / max(count, 1)))

    @property
    def inner(self) -> float:
        """Inches between the margins."""
        return self.width - 2 * MARGIN

    @property
    def reach(self) -> float:
        """Vertical distance between words and frames: flat lines are hard to follow."""
        return min(max(0.16 * self.inner, 1.3), 2.6)

    def spread(self, widths: Sequence[float], gap: float) -> list[Place]:
        """Places for things of these widths in the middle of the sheet, at least ``gap`` apart."""
        free = (self.inner - sum(widths)) / max(len(widths), 1)
        gap = max(min(free, _LARGEST_GAP), gap)
        left = MARGIN + (self.inner - sum(widths) - gap * (len(widths) - 1)) / 2
        places = []
        for width in widths:
            places.append(Place(left + width / 2, width / 2))
            left += width + gap
        return places

    def frame_places(self, clips: Members) -> list[Place]:
        """Where the frames, or the clips of several, stand."""
        pad, gap = (PAD, _BOX_GAP) if is_merged(clips) else (0.0, _FRAME_GAP)
        widths = [len(clip) * self.thumbnail + (len(clip) - 1) * _FRAME_GAP + 2 * pad for clip in clips]
        return self.spread(widths, gap)

    def word_row(self, tokens: Sequence[str], phrases: Members) -> WordRow:
        """Where the words, or the phrases of several, stand, and how they are broken."""
        if is_merged(phrases):
            return self._phrase_row(tokens, phrases)
        size = _SIZES[0]
        lines = [[_pieces(tokens, phrase)] for phrase in phrases]
        lengths = [text_width(tokens[word], size) for (word,) in phrases]
        widths = [length + 2 * PAD for length in lengths]
        if sum(widths) + _WORD_GAP * len(widths) <= self.inner:
            return WordRow(self.spread(widths, _WORD_GAP), lines, size, line_height(size) + 2 * PAD)
        angle = np.radians(_SLANT_DEGREES)
        # Slanted words reach beyond their places on the right.
        pitch = (self.inner - min(max(lengths), 1.0) * np.cos(angle)) / len(widths)
        places = [Place(MARGIN + (number + 0.5) * pitch, pitch / 2) for number in range(len(widths))]
        return WordRow(places, lines, size, float(max(lengths) * np.sin(angle)) + line_height(size), is_slanted=True)

    def _phrase_row(self, tokens: Sequence[str], phrases: Members) -> WordRow:
        # More lines first, smaller letters only when those do not help.
        for size in _SIZES:
            for count in range(1, _MOST_LINES + 1):
                lines = [_broken(_pieces(tokens, phrase), size, count) for phrase in phrases]
                widths = [max(_length(line, size) for line in box) + 2 * PAD for box in lines]
                fits = sum(widths) + _BOX_GAP * (len(widths) - 1) <= self.inner
                if fits or (size == _SIZES[-1] and count == _MOST_LINES):
                    height = max(map(len, lines)) * line_height(size) + 2 * PAD
                    return WordRow(self.spread(widths, _BOX_GAP), lines, size, height)
        raise AssertionError("the last try is taken, whatever it gives")


def is_merged(members: Members) -> bool:
    """Whether any word or frame of a level was merged from several."""
    return any(len(group) > 1 for group in members)


def _frame_gaps(clips: Members) -> float:
    """Inches of a row of frames or clips that are not pictures."""
    pad, gap = (PAD, _BOX_GAP) if is_merged(clips) else (0.0, _FRAME_GAP)
    return sum((len(clip) - 1) * _FRAME_GAP + 2 * pad for clip in clips) + (len(clips) - 1) * gap


def _pieces(tokens: Sequence[str], phrase: Sequence[int]) -> list[Piece]:
    """The tokens of a phrase; "…" stands where some between them belong to other phrases."""
    return [
        Piece(
            f"… {tokens[token]}" if place and token - phrase[place - 1] > 1 else tokens[token],
            token in (0, len(tokens) - 1),
        )
        for place, token in enumerate(phrase)
    ]


def _broken(pieces: Sequence[Piece], size_pt: float, most: int) -> list[list[Piece]]:
    """The pieces on at most so many lines, as narrow as they go."""
    words = [piece.text for piece in pieces]
    width = max(text_width(word, size_pt) for word in words)
    while len(lines := wrapped(words, size_pt, width)) > most:
        width *= 1.05
    return [[pieces[word] for word in line] for line in lines]


def _length(line: Sequence[Piece], size_pt: float) -> float:
    return sum(text_width(piece.text, size_pt) for piece in line) + space(size_pt) * (len(line) - 1)


def draw_words(axes: Axes, row: WordRow, bottom: float) -> None:
    """Draws words and phrases above ``bottom``."""
    for place, lines in zip(row.places, row.lines, strict=True):
        if row.is_slanted:
            ((piece,),) = lines
            write(axes, place.middle - 0.04, bottom + 0.03, piece.text, size=row.size_pt,
                  rotation=_SLANT_DEGREES, rotation_mode="anchor", ha="left", va="bottom",
                  color=SOFT if piece.is_special else INK)  # fmt: skip
            continue
        is_special = all(piece.is_special for line in lines for piece in line)
        height = len(lines) * line_height(row.size_pt) + 2 * PAD
        _box(axes, place.middle - place.half, bottom, 2 * place.half, height, is_special=is_special)
        for number, line in enumerate(lines):
            left = place.middle - _length(line, row.size_pt) / 2
            middle = bottom + height - PAD - (number + 0.5) * line_height(row.size_pt)
            for piece in line:
                colour = SOFT if piece.is_special else INK
                write(axes, left, middle, piece.text, size=row.size_pt, color=colour)
                left += text_width(piece.text, row.size_pt) + space(row.size_pt)


def draw_frames(
    axes: Axes, sheet: Sheet, maps: InteractionMaps, clips: Members, places: Sequence[Place], top: float
) -> None:
    """Draws frames and clips below ``top``, with their times in seconds where there is room."""
    side, pad = sheet.thumbnail, PAD if is_merged(clips) else 0.0
    widest = max(text_width(_time(time), _TIME_SIZE) for time in maps.times_s) + 0.06
    # A time at every so many frames, so that times do not overlap.
    every = int(np.ceil(widest / side))
    number = 0
    for clip, place in zip(clips, places, strict=True):
        left = place.middle - place.half
        if pad:
            _box(axes, left, top - side - 2 * pad, 2 * place.half, side + 2 * pad, is_special=False)
        for position, frame in enumerate(clip):
            x = left + pad + position * (side + _FRAME_GAP)
            y = top - pad - side
            # Above the lines (2) and the boxes (3).
            axes.imshow(maps.images[frame], extent=(x, x + side, y, y + side), zorder=4)
            if number % every == 0:
                below = top - side - 2 * pad - 0.08
                write(axes, x + side / 2, below, _time(maps.times_s[frame]), size=_TIME_SIZE, ha="center", color=SOFT)
            number += 1


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{seconds % 60:04.1f}"


def _box(axes: Axes, left: float, bottom: float, width: float, height: float, *, is_special: bool) -> None:
    style = {"facecolor": "white", "linestyle": (0, (2, 2))} if is_special else {"facecolor": PAPER}
    shape = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, edgecolor=FAINT, linewidth=0.8,
                                  zorder=3, **style))  # fmt: skip
