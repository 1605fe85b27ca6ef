"""What the figures of an interaction share: colours, letters, and numbers.

Positive interactions are blue, negative ones orange, which people with any colour vision can tell apart. In a grey copy
the dashes of the lines tell them apart.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from pipelines.figures.maps import InteractionMaps, Kind, Map

DPI = 150

INK, SOFT, FAINT, PAPER = "#1a1a1a", "#6b6b6b", "#c9c9c9", "#f5f5f3"

INTERACTION = LinearSegmentedColormap.from_list(
    "interaction", ["#7f2704", "#d94801", "#fd9d54", "#f0f0ee", "#75b3d8", "#2171b5", "#08306b"]
)

TITLES: dict[Kind, str] = {
    "exact": "Banzhaf interaction, exact",
    "estimator": "Banzhaf interaction, estimated by the network",
    "difference": "Banzhaf interaction, estimated less exact",
}

COLOURS = "Blue: the two are worth more together than apart. Orange: less. The darker, the stronger."


def norm_of(values: Map) -> Normalize:
    """Colours of equal strength for equal distances from 0."""
    largest = float(np.abs(values).max(initial=0)) or 1.0
    return Normalize(-largest, largest)


def signed(value: float, largest: float) -> str:
    """A number with its sign, with as many decimal places as give ``largest`` two significant digits."""
    places = max(1 - math.floor(math.log10(abs(largest) or 1.0)), 0)
    rounded = round(float(value), places)
    return f"{rounded:+.{places}f}".replace("-", "−") if rounded else "0"


@cache
def text_width(text: str, size_pt: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    # Matplotlib brings this font along. Its outlines are measured, which needs no canvas, so that the size of a figure
    # is known before there is one.
    properties = FontProperties(family="DejaVu Sans", size=size_pt, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, properties, False)
    return float(width) / 72


def wrapped(words: list[str], size_pt: float, width: float, weight: str = "normal") -> list[list[int]]:
    """The positions of the words that go on each line of at most ``width`` inches, at least one each."""
    lines: list[list[int]] = []
    used = 0.0
    for position, word in enumerate(words):
        needed = text_width(word, size_pt, weight)
        if lines and used + space(size_pt) + needed <= width:
            lines[-1].append(position)
            used += space(size_pt) + needed
        else:
            lines.append([position])
            used = needed
    return lines


def line_height(size_pt: float) -> float:
    """Inches from line to line."""
    return 1.35 * size_pt / 72


def space(size_pt: float) -> float:
    """Inches between two words."""
    return 0.33 * size_pt / 72


def wrapped_text(text: str, size_pt: float, width: float, weight: str = "normal") -> str:
    """The text with line breaks, so that no line is longer than ``width`` inches, as far as possible."""
    words = text.split()
    return "\n".join(" ".join(words[word] for word in line) for line in wrapped(words, size_pt, width, weight))


TITLE_SIZE = 12.0


def heading(maps: InteractionMaps, width: float) -> str:
    """What is drawn, the text in quotes, broken into lines of at most ``width`` inches."""
    return wrapped_text(f"“{maps.text}”", TITLE_SIZE, width, "bold")


def write(axes: Axes, x: float, y: float, text: str, *, size: float, **options: Any) -> None:
    """Writes at a place in inches; a dollar sign is written as it is and does not begin a formula."""
    options = {"va": "center", "color": INK, "family": "DejaVu Sans", **options}
    axes.text(x, y, text, fontsize=size, parse_math=False, **options)


def draw_bar(axes: Axes, right: float, middle: float, largest: float) -> None:
    """The scale of the colours, from -``largest`` to ``largest``, left of ``right``."""
    high = signed(largest, largest)
    write(axes, right, middle, high, size=8, ha="right")
    end = right - text_width(high, 8) - 0.07
    extent = (end - 1.3, end, middle - 0.055, middle + 0.055)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=INTERACTION, extent=extent, aspect="auto", zorder=1)
    write(axes, end - 1.37, middle, signed(-largest, largest), size=8, ha="right")
