"""The interaction at three levels as heat maps: a row per word or phrase, a column per frame or clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.figures.maps import InteractionMaps, Kind, LevelMap
from pipelines.figures.sheet import MARGIN
from pipelines.figures.style import (
    COLOURS,
    DPI,
    FAINT,
    INK,
    INTERACTION,
    SOFT,
    TITLE_SIZE,
    TITLES,
    draw_bar,
    heading,
    line_height,
    norm_of,
    signed,
    text_width,
    wrapped_text,
    write,
)

_LABEL_SIZE = 8.5
# All of these in inches.
_HEADER, _BETWEEN, _FOOTER = 0.4, 0.35, 0.3
_SMALLEST_CELL, _LARGEST_CELL = 0.24, 0.62
_SMALLEST_ROW, _LARGEST_ROW = 0.2, 0.32
# What all columns, or all rows, take together where their cells can have that size.
_COMFORTABLE = 9.0
_LONGEST_LABEL = 3.2
_ROOM_FOR_NUMBER = 0.4
_NARROWEST = 7.0


@dataclass(frozen=True)
class _Panel:
    """A level: its labels, the edges of its columns from the left, and the height of its rows, in inches."""

    level: LevelMap
    labels: list[str]
    edges: NDArray[np.float64]
    row: float
    thumbnail: float

    @property
    def height(self) -> float:
        """Inches from its title to its last row."""
        return _HEADER + self.thumbnail + 0.08 + self.row * len(self.labels)


def heat_map_figure(maps: InteractionMaps, kind: Kind = "exact") -> Figure:
    """The three levels one below the other; numbers stand in the cells where there is room for them."""
    cell = float(np.clip(_COMFORTABLE / max(len(maps.images), 1), _SMALLEST_CELL, _LARGEST_CELL))
    panels = [_panel(maps, level, cell) for level in maps.levels]
    label = max(text_width(text, _LABEL_SIZE) for panel in panels for text in panel.labels) + 0.12
    inner = max(_NARROWEST, label + cell * len(maps.images))
    title = heading(maps, inner)
    top = 0.25 + line_height(TITLE_SIZE) * (title.count("\n") + 1) + 0.35
    height = top + sum(panel.height + _BETWEEN for panel in panels) + _FOOTER
    figure = Figure(figsize=(inner + 2 * MARGIN, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    write(axes, MARGIN, height - 0.25, title, size=TITLE_SIZE, va="top", weight="bold", linespacing=1.2)
    write(axes, MARGIN, height - top + 0.2, TITLES[kind], size=9.5, color=SOFT)
    edge = height - top
    for panel in panels:
        _draw(axes, maps, panel, kind, left=MARGIN + label, right=inner + MARGIN, top=edge)
        edge -= panel.height + _BETWEEN
    write(axes, MARGIN, _FOOTER, wrapped_text(COLOURS, 7.5, inner), size=7.5, va="top", color=SOFT)
    # Drawing pictures and cells changes the limits of the axes, and with them the scale of an inch.
    axes.set(xlim=(0, inner + 2 * MARGIN), ylim=(0, height), aspect="auto")
    return figure


def _panel(maps: InteractionMaps, level: LevelMap, cell: float) -> _Panel:
    labels = [_cut(maps.phrase(phrase)) for phrase in level.words]
    # A clip is as wide as its frames.
    edges = cell * np.cumsum([0, *(len(clip) for clip in level.frames)])
    row = float(np.clip(_COMFORTABLE / len(labels), _SMALLEST_ROW, _LARGEST_ROW))
    return _Panel(level, labels, edges, row, cell)


def _draw(
    axes: Axes, maps: InteractionMaps, panel: _Panel, kind: Kind, *, left: float, right: float, top: float
) -> None:
    values = panel.level.interactions[kind]
    norm = norm_of(values)
    rows = len(values)
    axes.plot([MARGIN, right], [top, top], color=FAINT, linewidth=0.6)
    write(axes, MARGIN, top - 0.17, f"{panel.level.name.capitalize()} level", size=10.5, weight="bold")
    draw_bar(axes, right, top - 0.17, float(norm.vmax or 0))
    above = top - _HEADER - panel.thumbnail
    for start, clip in zip(left + panel.edges[:-1], panel.level.frames, strict=True):
        for place, frame in enumerate(clip):
            x = start + place * panel.thumbnail
            extent = (x + 0.01, x + panel.thumbnail - 0.01, above + 0.02, above + panel.thumbnail)
            axes.imshow(maps.images[frame], extent=extent, aspect="auto", zorder=2)
    bottom = above - 0.04 - rows * panel.row
    across, up = left + panel.edges, bottom + np.arange(rows + 1) * panel.row
    # White between the cells, so that neighbours of the same colour can be told apart.
    axes.pcolormesh(across, up, values[::-1], cmap=INTERACTION, norm=norm, edgecolors="white", linewidth=0.8, zorder=1)
    for row, label in enumerate(panel.labels):
        middle = up[-1] - (row + 0.5) * panel.row
        is_special = all(map(maps.is_special, panel.level.words[row]))
        write(axes, left - 0.08, middle, label, size=_LABEL_SIZE, ha="right", color=SOFT if is_special else INK)
        for column, value in enumerate(values[row]):
            if panel.edges[column + 1] - panel.edges[column] < _ROOM_FOR_NUMBER:
                continue
            # On darker cells than this black numbers cannot be read.
            colour = "white" if abs(value) > 0.62 * float(norm.vmax or 1) else INK
            write(axes, across[column : column + 2].mean(), middle, signed(value, float(norm.vmax or 1)), size=6.5,
                  ha="center", color=colour)  # fmt: skip


def _cut(label: str) -> str:
    """The label, shortened if there is no room for all of it."""
    if text_width(label, _LABEL_SIZE) <= _LONGEST_LABEL:
        return label
    while text_width(f"{label} …", _LABEL_SIZE) > _LONGEST_LABEL:
        label = label[:-1]
    return f"{label.rstrip()} …"
