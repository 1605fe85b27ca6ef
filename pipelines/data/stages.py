"""The stages ``shapes`` (a generated data set) and ``manifest`` (one row per video of any data set)."""

from __future__ import annotations

import logging
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.configs import DataConfig, Recipe, ShapesConfig
from pipelines.progress import Progress
from pipelines.records import ERRORS_FILE, MANIFEST_FILE
from pipelines.shards import map_shards, split_shards
from pipelines.stages import Counts, Stage, StageContext, plain
from pipelines.storage import content_digest

logger = logging.getLogger(__name__)

_CLIPS_PER_TASK = 64


def shapes_stage(shapes: ShapesConfig, recipe: Recipe) -> Stage:
    """Generates the videos and annotations of the shapes data set."""

    def run(context: StageContext) -> Counts:
        from pipelines.data.shapes import write_annotations, write_clips

        total = shapes.train_videos + shapes.test_videos
        # What the tasks hold travels to them; the tracker stays with the driver.
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

    return Stage(name="shapes", version=1, settings=plain(shapes), inputs=(), run=run)


def manifest_stage(data: DataConfig) -> Stage:
    """Reads a data set into the manifest; refuses what cannot be used before any work starts."""
    generated = data.shapes is not None

    def run(context: StageContext) -> Counts:
        from pipelines.data.manifest import build_manifest
        from pipelines.data.shapes import VIDEOS_FOLDER

        annotations = context.inputs["shapes"].storage if generated else None
        manifest = build_manifest(
            data,
            annotations=annotations.uri if annotations else None,
            videos=annotations.folder(VIDEOS_FOLDER).uri if annotations else None,
        )
        for warning in manifest.warnings:
            logger.warning("manifest: %s", warning)
        context.output.write_table(MANIFEST_FILE, manifest.table)
        context.output.write_table(ERRORS_FILE, manifest.errors)
        captions, questions = (pc.list_value_length(manifest.table.column(name)) for name in ("captions", "questions"))
        splits = {
            f"{name}_{count['values']}": count["counts"]
            for name, column in (
                ("videos", manifest.table.column("split")),
                ("questions", _question_splits(manifest.table)),
            )
            for count in pc.value_counts(column).to_pylist()
        }
        return {
            "rows": len(manifest.table),
            "errors": len(manifest.errors),
            "captions": pc.sum(captions).as_py() or 0,
            "questions": pc.sum(questions).as_py() or 0,
            **splits,
            **{f"missing_{split}": count for split, count in manifest.missing.items()},
        }

    settings = plain(replace(data, shapes=None))
    if not generated:
        from pipelines.data.manifest import manifest_digest

        settings["digest"] = manifest_digest(data)
    elif data.questions is not None:
        settings["digest"] = content_digest(data.questions)
    return Stage(name="manifest", version=3, settings=settings, inputs=("shapes",) if generated else (), run=run)


def _question_splits(table: pa.Table) -> pa.Array:
    """The split of every question of a manifest."""
    return pc.struct_field(pc.list_flatten(table.column("questions")), "split")
