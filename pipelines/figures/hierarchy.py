"""The interaction at three levels as lines between words above and frames below."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pipelines.figures.maps import InteractionMaps, Kind, LevelMap
from pipelines.figures.sheet import MARGIN, PAD, Sheet, WordRow, draw_frames, draw_words
from pipelines.figures.style import (
    COLOURS,
    DPI,
    FAINT,
    INTERACTION,
    SOFT,
    TITLE_SIZE,
    TITLES,
    draw_bar,
    heading,
    line_height,
    norm_of,
    text_width,
    wrapped_text,
    write,
)

_FAINTEST = 0.08
"""Lines below this share of the strongest are not drawn: they would only make the picture grey."""

_HEADER, _TIMES, _BETWEEN, _FOOTER = 0.45, 0.18, 0.22, 0.42


def hierarchy_figure(maps: InteractionMaps, kind: Kind = "exact") -> Figure:
    """The three levels one below the other, each with its words, its frames and its lines."""
    sheet = Sheet.of(maps)
    title = heading(maps, sheet.inner)
    top = 0.25 + line_height(TITLE_SIZE) * (title.count("\n") + 1) + 0.35
    rows = [sheet.word_row(maps.tokens, level.words) for level in maps.levels]
    panels = [_HEADER + row.height + sheet.reach + sheet.thumbnail + 2 * PAD + _TIMES + _BETWEEN for row in rows]
    height = top + sum(panels) + _FOOTER
    figure = Figure(figsize=(sheet.width, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    write(axes, MARGIN, height - 0.25, title, size=TITLE_SIZE, va="top", weight="bold", linespacing=1.2)
    write(axes, MARGIN, height - top + 0.2, TITLES[kind], size=9.5, color=SOFT)
    edge = height - top
    drawn = 0
    for level, row, panel in zip(maps.levels, rows, panels, strict=True):
        drawn += _draw_level(axes, sheet, maps, level, row, kind, edge)
        edge -= panel
    cells = sum(level.cosines.size for level in maps.levels)
    note = (
        f"{COLOURS.replace('Orange', 'Dashed, orange')} Drawn are {drawn:,} of {cells:,} lines: those of at least "
        f"{_FAINTEST:.0%} of the strongest of their level."
    )
    write(axes, MARGIN, _FOOTER - 0.08, wrapped_text(note, 7.5, sheet.inner), size=7.5, va="top", color=SOFT)
    # Drawing pictures changes the limits of the axes.
    axes.set(xlim=(0, sheet.width), ylim=(0, height), aspect="auto")
    return figure


def _draw_level(
    axes: Axes, sheet: Sheet, maps: InteractionMaps, level: LevelMap, row: WordRow, kind: Kind, top: float
) -> int:
    """Draws a panel below ``top``; returns the number of its lines."""
    values = level.interactions[kind]
    norm = norm_of(values)
    _draw_header(axes, sheet, level, float(norm.vmax or 0), top)
    words_bottom = top - _HEADER - row.height
    frames_top = words_bottom - sheet.reach
    frames = sheet.frame_places(level.frames)
    strength = np.abs(values) / float(norm.vmax or 1)
    # The strongest lines come last, on top of the others.
    cells = sorted(zip(*np.nonzero(strength >= _FAINTEST), strict=True), key=lambda cell: float(strength[cell]))
    widest = float(np.clip(60 / max(values.shape), 1.2, 3.6))
    lines = LineCollection(
        [[(row.places[word].middle, words_bottom), (frames[frame].middle, frames_top)] for word, frame in cells],
        colors=[INTERACTION(norm(values[cell])) for cell in cells],
        linewidths=[0.3 + widest * float(strength[cell]) for cell in cells],
        linestyles=["solid" if values[cell] >= 0 else (0, (3, 1.5)) for cell in cells],
        zorder=2,
    )
    axes.add_collection(lines)
    draw_words(axes, row, words_bottom)
    draw_frames(axes, sheet, maps, level.frames, frames, frames_top)
    return len(cells)


def _draw_header(axes: Axes, sheet: Sheet, level: LevelMap, largest: float, top: float) -> None:
    axes.plot([MARGIN, sheet.width - MARGIN], [top, top], color=FAINT, linewidth=0.6)
    name, middle = f"{level.name.capitalize()} level", top - 0.17
    write(axes, MARGIN, middle, name, size=10.5, weight="bold")
    said = f"{len(level.words)} × {len(level.frames)},  similarity {level.similarity:.3f}".replace("-", "−")
    write(axes, MARGIN + text_width(name, 10.5, "bold") + 0.2, middle, said, size=8.5, color=SOFT)
    draw_bar(axes, sheet.width - MARGIN, middle, largest)
