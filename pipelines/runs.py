"""Which recipes were run in a workspace, and what each of them needs there.

Every run leaves ``runs/<id>.json``: its settings, the fingerprint of every stage and the folders
that hold its results. Status reads it; what no record refers to may be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow.fs as pafs

from pipelines.locks import FOLDER as LOCKS
from pipelines.locks import owners
from pipelines.stages import ARTIFACT, Graph, digest, plain
from pipelines.storage import Storage

RUNS = "runs"
SHARDS = "shards"
"""Folder of the pools that stages of several runs share."""

_KEPT = frozenset({RUNS, LOCKS, "logs", "mlartifacts"})
"""Folders of a workspace that hold no artifacts."""


@dataclass(frozen=True)
class RunRecord:
    """One recipe that was run in the workspace."""

    run_id: str
    """A digest of the stages' fingerprints: the same settings give the same record."""
    started_at: str
    """When it was last started, UTC."""
    stages: Mapping[str, str]
    """Fingerprints by stage, in order."""
    locks: Mapping[str, str]
    """What is held while a stage runs, by stage."""
    folders: tuple[str, ...]
    """Folders of the workspace that it needs."""
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Leftover:
    """A folder that no record refers to."""

    folder: str
    size_bytes: int
    finished_at: str | None
    """None if it was never finished."""


def record_run(graph: Graph, recipe: Any) -> str:
    """Writes down that ``recipe`` is run in the graph's workspace; returns the id of the record."""
    folders = [f"{stage.name}/{graph.fingerprints[stage.name]}" for stage in graph.stages]
    folders += [f"{SHARDS}/{stage.writes}" for stage in graph.stages if stage.writes is not None]
    run_id = digest(graph.fingerprints)
    document = {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # Lists keep the order of the stages, which a JSON object does not promise.
        "stages": [[stage.name, graph.fingerprints[stage.name]] for stage in graph.stages],
        "locks": [[stage.name, graph.lock_name(stage)] for stage in graph.stages],
        "folders": folders,
        "settings": plain(recipe),
    }
    graph.workspace.write_json(f"{RUNS}/{run_id}.json", document)
    return run_id


def read_runs(workspace: Storage) -> list[RunRecord]:
    """The records of a workspace, the latest first."""
    records = []
    for name in workspace.files(RUNS, suffix=".json"):
        document = workspace.read_json(f"{RUNS}/{name}")
        records.append(
            RunRecord(
                name.removesuffix(".json"),
                document["started_at"],
                dict(document["stages"]),
                dict(document["locks"]),
                tuple(document["folders"]),
                document["settings"],
            )
        )
    return sorted(records, key=lambda record: record.started_at, reverse=True)


def forget_run(workspace: Storage, run_id: str) -> None:
    """Removes a record; what only it referred to becomes a leftover.

    Raises:
        ValueError: there is no such record.
    """
    known = [record.run_id for record in read_runs(workspace)]
    if run_id not in known:
        raise ValueError(
            f"{workspace.uri} has no run {run_id!r}; its runs are: {', '.join(known) or 'none'} (python -m jobs.status)"
        )
    workspace.delete(f"{RUNS}/{run_id}.json")


def leftovers(workspace: Storage) -> list[Leftover]:
    """Artifacts and pools that no record refers to."""
    needed = {folder for record in read_runs(workspace) for folder in record.folders}
    found = []
    for stage in workspace.folders():
        if stage in _KEPT or stage.startswith("."):
            continue
        for name in workspace.folders(stage):
            folder = f"{stage}/{name}"
            # A folder that is neither an artifact's nor a pool's is somebody else's.
            if folder not in needed and (stage == SHARDS or _is_digest(name)):
                found.append(Leftover(folder, folder_size(workspace, folder), _finished_at(workspace, folder)))
    return found


def remove(workspace: Storage, folders: Iterable[str]) -> None:
    """Removes ``folders`` of the workspace.

    Raises:
        ValueError: a run is at work in the workspace; nothing was removed.
    """
    busy = owners(workspace)
    if busy:
        name, owner = next(iter(busy.items()))
        raise ValueError(
            f"{workspace.uri} is in use: {owner} is at work on {name}. Nothing was removed; try again when it is done"
        )
    for folder in folders:
        workspace.delete(folder)


def folder_size(workspace: Storage, folder: str) -> int:
    """Bytes of all files below ``folder``."""
    selector = pafs.FileSelector(workspace.path(folder), recursive=True, allow_not_found=True)
    return sum(info.size or 0 for info in workspace.filesystem.get_file_info(selector))


def _finished_at(workspace: Storage, folder: str) -> str | None:
    if not workspace.exists(f"{folder}/{ARTIFACT}"):
        return None
    return str(workspace.read_json(f"{folder}/{ARTIFACT}")["finished_at"])


def _is_digest(name: str) -> bool:
    return len(name) == len(digest(None)) and not name.strip("0123456789abcdef")
