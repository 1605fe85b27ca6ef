"""The stage ``report``: one page about the run, in a file that needs no others."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.recipe.recipe import Recipe
from pipelines.stages.frames import frames_pool
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts

REPORT = "report"
PAGE = "index.html"


def report_stage(recipe: Recipe, stages: Iterable[Stage]) -> Stage:
    """Writes the page about what ``stages`` made."""

    def run(context: StageContext) -> Counts:
        from pipelines.report.page import make_page
        from pipelines.report.reader import Reader

        pool = frames_pool(context.workspace, recipe)
        page = make_page(Reader(context.inputs, context.workspace, pool, recipe), recipe)
        context.output.write_bytes(PAGE, page.encode())
        context.tracker.log_files(context.output, [PAGE])
        return {"rows": 1, "errors": 0, "bytes": len(page.encode())}

    settings = counting(recipe.report)
    return Stage(name=REPORT, version=1, settings=settings, inputs=tuple(stage.name for stage in stages), run=run)
