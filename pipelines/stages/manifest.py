"""The stages ``shapes`` (a generated data set) and ``manifest`` (one row per video of any data set)."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.recipe.data import DataConfig
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts
from pipelines.workspace.records import ERRORS_FILE, MANIFEST_FILE
from pipelines.workspace.storage import content_digest

logger = logging.getLogger(__name__)


def manifest_stage(data: DataConfig) -> Stage:
    """Reads a data set into the manifest; refuses what cannot be used before any work starts."""
    generated = data.shapes is not None

    def run(context: StageContext) -> Counts:
        from pipelines.datasets.manifest import build_manifest
        from pipelines.shapes.data_set import VIDEOS_FOLDER

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

    settings = counting(data)
    if not generated:
        from pipelines.datasets.manifest import manifest_digest

        settings["digest"] = manifest_digest(data)
    elif data.questions is not None:
        settings["digest"] = content_digest(data.questions)
    return Stage(name="manifest", version=3, settings=settings, inputs=("shapes",) if generated else (), run=run)


def _question_splits(table: pa.Table) -> pa.Array:
    """The split of every question of a manifest."""
    return pc.struct_field(pc.list_flatten(table.column("questions")), "split")
