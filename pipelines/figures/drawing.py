"""The pictures of a text and a video as files in a folder."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.figures.files import png, svg
from pipelines.figures.heat_maps import heat_map_figure
from pipelines.figures.hierarchy import hierarchy_figure
from pipelines.figures.maps import KINDS, InteractionMaps, Kind
from pipelines.workspace.storage import Storage

INTERACTION_JSON = "interaction.json"

_FIGURES = {"hierarchy": hierarchy_figure, "heat_maps": heat_map_figure}
_FORMATS = {"png": png, "svg": svg}


def checked_kinds(names: Sequence[str]) -> list[Kind]:
    """``names`` as kinds of interactions, each once.

    Raises:
        ValueError: ``names`` is empty, or a name is unknown.
    """
    unknown = sorted(set(names) - set(KINDS))
    if unknown or not names:
        what = f"{', '.join(unknown)} cannot be shown" if unknown else "there is nothing to show"
        raise ValueError(f"{what}; choose among {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in names]


def write_figures(maps: InteractionMaps, output: Storage) -> list[str]:
    """Commits the figures of every kind in ``maps`` and their numbers to ``output``; returns the names of the files."""
    written = [INTERACTION_JSON]
    output.write_json(INTERACTION_JSON, maps.document())
    for kind in maps.kinds:
        for name, draw in _FIGURES.items():
            for ending, saved in _FORMATS.items():
                # Saving ties a figure to a canvas, so each file is drawn from a new figure.
                output.write_bytes(f"{name}_{kind}.{ending}", saved(draw(maps, kind)))
                written.append(f"{name}_{kind}.{ending}")
    return written
