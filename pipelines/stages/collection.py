"""The stage ``manifest`` of a collection of videos without captions."""

from __future__ import annotations

from pipelines.datasets.collection import find_collection
from pipelines.stages.stage import Stage, StageContext
from pipelines.workspace.artifact import Counts
from pipelines.workspace.records import ERRORS_FILE, MANIFEST_FILE
from pipelines.workspace.uris import absolute_uri


def collection_stage(videos: str) -> Stage:
    """The manifest of the collection ``videos``. It is listed when the stage is made, so that a plan shows what is new.

    Raises:
        FileNotFoundError, ValueError: as :func:`find_collection`.
    """
    collection = find_collection(videos)

    def run(context: StageContext) -> Counts:
        context.output.write_table(MANIFEST_FILE, collection.table)
        context.output.write_table(ERRORS_FILE, collection.errors)
        return {"rows": len(collection.table), "errors": len(collection.errors)}

    settings = {"collection": absolute_uri(videos), "digest": collection.digest()}
    return Stage(name="manifest", version=1, settings=settings, inputs=(), run=run)
