"""The stage ``report``: one page about the run, complete in itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.configs import Recipe
from pipelines.stages import Counts, Stage, StageContext, plain

if TYPE_CHECKING:
    from pipelines.report.content import Picture, Reader

REPORT = "report"
PAGE = "index.html"
_DPI = 100


def report_stage(recipe: Recipe, stages: Iterable[Stage]) -> Stage:
    """Writes the page about what ``stages`` made."""

    def run(context: StageContext) -> Counts:
        page = make_page(context, recipe)
        context.output.write_bytes(PAGE, page.encode())
        context.tracker.log_files(context.output, [PAGE])
        return {"rows": 1, "errors": 0, "bytes": len(page.encode())}

    settings = plain(recipe.report)
    del settings["enabled"]
    return Stage(name=REPORT, version=1, settings=settings, inputs=tuple(stage.name for stage in stages), run=run)


def make_page(context: StageContext, recipe: Recipe) -> str:
    """The page about a stage's inputs as HTML that needs no other file and no network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from pipelines.report.content import Reader

    reader = Reader(context, recipe)
    content = reader.content(_interactions(context, recipe, reader) if "evaluation" in context.inputs else [])
    # Captions, paths and messages are anybody's text, and must not become a part of the page.
    environment = Environment(
        loader=PackageLoader("pipelines.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(page=content)


def _interactions(context: StageContext, recipe: Recipe, reader: Reader) -> list[Picture]:
    """The interactions of the first few of the best and of the worst queries with their own videos."""
    from pipelines.data.frame_store import decode_images
    from pipelines.evaluate.retrieval import METRICS_FILE
    from pipelines.figures.files import png
    from pipelines.figures.hierarchy import hierarchy_figure
    from pipelines.figures.reading import PairReader
    from pipelines.report.content import Picture
    from pipelines.report.pictures import data_uri
    from pipelines.train.initial_weights import load_checkpoint

    best, worst = (queries[: recipe.report.figures] for queries in reader.queries)
    if not best:
        return []
    checkpoint = context.inputs["evaluation"].storage.read_json(METRICS_FILE)["checkpoint"]
    with TemporaryDirectory() as scratch:
        model = load_checkpoint(checkpoint, recipe.model, Path(scratch))
    pairs, pictures = PairReader(model, None, recipe.frames), []
    for query in [*best, *worst]:
        encoded, times_s = reader.video(query.own.video_id)
        maps = pairs.relate(decode_images(encoded), query.caption, video=query.own.video_id, times_s=times_s)
        figure = hierarchy_figure(maps)
        figure.set_dpi(_DPI)
        title = f"{query.own.video_id}: “{query.caption}”, rank {query.rank:,}"
        pictures.append(Picture(title, data_uri("png", png(figure))))
    return pictures
