"""The page about a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.figures.files import png
from pipelines.figures.hierarchy import hierarchy_figure
from pipelines.figures.reading import PairReader
from pipelines.models.initial_weights import load_checkpoint
from pipelines.recipe.recipe import Recipe
from pipelines.report.content import Picture
from pipelines.report.pictures import data_uri
from pipelines.report.reader import Reader
from pipelines.video.frame_store import decode_images

_DPI = 100


def make_page(reader: Reader, recipe: Recipe) -> str:
    """The page about what ``reader`` reads, as HTML that needs no other file and no network."""
    content = reader.content(_interactions(recipe, reader))
    # Captions, paths and messages may hold any text, and must not become HTML.
    environment = Environment(
        loader=PackageLoader("pipelines.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(page=content)


def _interactions(recipe: Recipe, reader: Reader) -> list[Picture]:
    """The interactions of the first few of the best and of the worst queries with their own videos."""
    best, worst = (queries[: recipe.report.figures] for queries in reader.queries)
    if not best or reader.checkpoint is None:
        return []
    with TemporaryDirectory() as scratch:
        model = load_checkpoint(reader.checkpoint, recipe.model, Path(scratch))
    pairs, pictures = PairReader(model, None, recipe.frames), []
    for query in [*best, *worst]:
        encoded, times_s = reader.video(query.own.video_id)
        maps = pairs.relate(decode_images(encoded), query.caption, video=query.own.video_id, times_s=times_s)
        figure = hierarchy_figure(maps)
        figure.set_dpi(_DPI)
        title = f"{query.own.video_id}: “{query.caption}”, rank {query.rank:,}"
        pictures.append(Picture(title, data_uri("png", png(figure))))
    return pictures
