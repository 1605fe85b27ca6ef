"""The stage ``manifest``: one row per video of any data set."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.recipe.data import DataConfig
from pipelines.stages.settings import counting
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Artifact, Counts, read_document
from pipelines.workspace.contents import content_digest
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import ERRORS_FILE, MANIFEST_FILE
from pipelines.workspace.uris import join_uri, last_name, parent_uri

logger = logging.getLogger(__name__)

VERSION = 4
_FORMER_VERSION = 3
"""The version of annotations that both versions read alike, so that what was made of them stays valid."""


def manifest_stage(data: DataConfig) -> Stage:
    """Reads a data set into the manifest; refuses unusable data before any work starts."""
    generated = data.shapes is not None

    def run(context: StageContext) -> Counts:
        if generated and not context.forced and (counts := _take_to_new_place(context)) is not None:
            return counts
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

        # Generated annotations count by the fingerprint of their stage instead.
        settings["digest"] = manifest_digest(data)
    elif data.questions is not None:
        settings["digest"] = content_digest(data.questions)
    from pipelines.datasets.former_readings import is_read_otherwise

    return Stage(
        name="manifest",
        version=VERSION if is_read_otherwise(data) else _FORMER_VERSION,
        settings=settings,
        inputs=("shapes",) if generated else (),
        run=run,
        # Damaged, not outdated: what was made of the manifest stays valid in a workspace that was moved.
        lost=_moved if generated else lambda artifact: None,
    )


def _moved(artifact: Artifact) -> str | None:
    """Says so if the manifest of generated videos still names the former place of the workspace."""
    try:
        table = artifact.storage.read_table(MANIFEST_FILE, columns=["uri"])
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    workspace = parent_uri(parent_uri(artifact.storage.uri))
    shapes = join_uri(workspace, "shapes", str(artifact.document["inputs"].get("shapes")))
    # The address is WORKSPACE/shapes/FINGERPRINT/videos/NAME, and all videos lie in one folder.
    if len(table) and parent_uri(parent_uri(table.column("uri")[0].as_py())) != shapes:
        return "the workspace was moved, and the addresses of the videos name its old place"
    return None


def _take_to_new_place(context: StageContext) -> Counts | None:
    """Rewrites only the addresses in the finished manifest of a workspace that was moved; None if there is no manifest.

    The keys stay, because frames and labels are found by them.
    """
    shapes = context.inputs["shapes"].storage
    try:
        counts: Counts = read_document(context.output)["counts"]
        tables = {name: context.output.read_table(name) for name in (MANIFEST_FILE, ERRORS_FILE)}
    except (FileNotFoundError, DamagedFileError):
        return None
    for name, table in tables.items():
        # The folder of the videos, and a file's name.
        names = [(last_name(parent_uri(uri)), last_name(uri)) for uri in table.column("uri").to_pylist()]
        uris = [join_uri(shapes.uri, *parts) for parts in names]
        place = table.schema.get_field_index("uri")
        table = table.set_column(place, table.schema.field(place), pa.array(uris, pa.string()))
        context.output.write_table(name, table)
    return counts


def _question_splits(table: pa.Table) -> pa.Array:
    """The split of every question of a manifest."""
    return pc.struct_field(pc.list_flatten(table.column("questions")), "split")
