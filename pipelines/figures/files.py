"""Figures as files: the same figure gives the same bytes, on every machine with the same Matplotlib."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, at its own resolution."""
    # A canvas of its own, because pyplot would choose one by the machine and keep every figure.
    FigureCanvasAgg(figure)
    return _saved(figure, format="png", metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file; text becomes outlines, so that it looks alike without Matplotlib's fonts."""
    FigureCanvasSVG(figure)
    # Without these settings ids are hashes with a random salt and the date is that of the call, so every file differs.
    with rc_context({"svg.hashsalt": "hbi", "svg.fonttype": "path", "svg.image_inline": True}):
        return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def _saved(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()
