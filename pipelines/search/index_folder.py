"""The folder of an index: its files, and which artifact searches use."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc

from hbi_models.config_fields import require
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.records import FEATURES, INDEX_FILE
from pipelines.workspace.shards import SHARDS, ShardPool
from pipelines.workspace.storage import Storage

CURRENT = "index.json"
"""At the root of an index: the artifact that searches use."""

VECTORS = "vectors.faiss"
"""The first pass, as Faiss writes it."""


def features_pool(workspace: Storage, name: str) -> ShardPool:
    """The shards of an index, by the name that :data:`CURRENT` gives."""
    return ShardPool(workspace.folder(SHARDS, name), FEATURES)


@dataclass(frozen=True, slots=True)
class Segment:
    """A video file, or the part ``[start_s, end_s)`` of one."""

    uri: str
    start_s: float | None = None
    end_s: float | None = None


def read_current(root: Storage) -> dict[str, str]:
    """What :func:`publish` wrote.

    Raises:
        FileNotFoundError: there is no finished index.
        DamagedFileError: something else wrote it.
    """
    if not root.exists(CURRENT):
        raise FileNotFoundError(
            f"{root.place()} holds no finished index; make one: python -m jobs.index --index {root.place()} …"
        )
    document = root.read_json(CURRENT)
    if not isinstance(document, dict) or not {"artifact", "features", "frames"} <= document.keys():
        raise DamagedFileError(f"{root.place(CURRENT)} is not what jobs.index writes; run it again")
    return {name: str(value) for name, value in document.items()}


def find_segment(index: str, video_id: str) -> Segment:
    """The file of a video of an index.

    Raises:
        FileNotFoundError: there is no finished index.
        ValueError: it has no such video.
    """
    root = Storage(index)
    columns = ["video_id", "uri", "start_s", "end_s"]
    table = root.folder(read_current(root)["artifact"]).read_table(INDEX_FILE, columns=columns)
    found = table.filter(pc.equal(table.column("video_id"), video_id)).drop_columns(["video_id"]).to_pylist()
    require(
        bool(found),
        f"{index} has no video {video_id!r}; give an id that jobs.search --json prints, or leave out --index",
    )
    return Segment(**found[0])
