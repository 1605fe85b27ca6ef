"""The stage ``shapes``: the generated data set."""

from __future__ import annotations

import pyarrow as pa

from pipelines.progress import Progress
from pipelines.recipe.data import ShapesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.resources.sharded_work import map_shards
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts
from pipelines.workspace.shards import split_shards

_CLIPS_PER_TASK = 64


def shapes_stage(shapes: ShapesConfig, recipe: Recipe) -> Stage:
    """Generates the videos and annotations of the shapes data set."""

    def run(context: StageContext) -> Counts:
        from pipelines.shapes.data_set import write_annotations, write_clips

        total = shapes.train_videos + shapes.test_videos
        # Variables that the function uses are sent to the tasks, so it must not use the context: the tracker stays in
        # the driver.
        output = context.output

        def write(numbers: pa.Table) -> pa.Table:
            count = write_clips(shapes, numbers.column("number").to_pylist(), output)
            return pa.table({"clips": [count]})

        numbers = pa.table({"number": list(range(total))})
        with Progress("shapes", total=total, unit="clips") as progress:
            shards = split_shards(numbers, _CLIPS_PER_TASK)
            for row in map_shards(shards, write, name="shapes", resources=recipe.resources.decode):
                progress.advance(row["clips"])
        write_annotations(shapes, output)
        return {"rows": total, "errors": 0}

    return Stage(name="shapes", version=1, settings=counting(shapes), inputs=(), run=run)
