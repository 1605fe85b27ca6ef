"""Which recipes were run in a workspace, and what each of them needs there.

Every run leaves ``runs/<id>.json``: its settings, the fingerprint of every stage and the folders
that hold its results. ``jobs.status`` reads these records; ``jobs.gc`` removes what no record refers to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.workspace.artifact import digest, discard, plain, read_document
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.locks import FOLDER as LOCKS
from pipelines.workspace.locks import owners
from pipelines.workspace.records import INDEX_FILE
from pipelines.workspace.shards import SHARDS, ShardPool, generation_of
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name

RUNS = "runs"

UNRECORDED = "unrecorded"
"""Folder of notes about what an MLflow server has missed while it could not be reached."""

_KEPT = frozenset({RUNS, LOCKS, UNRECORDED, "logs", "mlartifacts"})
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
    """The lock that is held while a stage runs, by stage."""
    folders: tuple[str, ...]
    """Folders of the workspace that it needs."""
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Leftover:
    """A folder that no record refers to, or shards that a newer generation of a pool has replaced."""

    folder: str
    size_bytes: int
    finished_at: str | None = None
    """When; None if it was never finished, or if the document that says so is damaged."""
    shards: tuple[str, ...] = ()
    """Files to remove from a pool that is still needed; empty = the whole folder."""


def record_run(
    workspace: Storage,
    *,
    stages: Mapping[str, str],
    locks: Mapping[str, str],
    folders: Iterable[str],
    settings: Any,
) -> str:
    """Writes down that a recipe is run in ``workspace``; returns the id of the record.

    Args:
        workspace: where it is run.
        stages: fingerprints by stage, in order.
        locks: the lock that is held while a stage runs, by stage.
        folders: those of the workspace that it needs.
        settings: the recipe.
    """
    run_id = digest(stages)
    document = {
        # Runs with nothing left to do follow each other within a second, and which is the latest must be known.
        "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        # Lists keep the order of the stages, which a JSON object does not promise.
        "stages": [list(item) for item in stages.items()],
        "locks": [list(item) for item in locks.items()],
        "folders": sorted(set(folders)),
        "settings": plain(settings),
    }
    workspace.write_json(f"{RUNS}/{run_id}.json", document)
    return run_id


def read_runs(workspace: Storage) -> list[RunRecord]:
    """The records of a workspace, the latest first.

    Raises:
        DamagedFileError: a file among them is not one that this project writes.
    """
    records = [_read_run(workspace, f"{RUNS}/{name}") for name in workspace.files(RUNS, suffix=".json")]
    return sorted(records, key=lambda record: record.started_at, reverse=True)


def _read_run(workspace: Storage, path: str) -> RunRecord:
    document = workspace.read_json(path)
    try:
        return RunRecord(
            last_name(path).removesuffix(".json"),
            str(document["started_at"]),
            dict(document["stages"]),
            dict(document["locks"]),
            tuple(document["folders"]),
            dict(document["settings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{workspace.place(path)} is not the record of a run as this project writes it; remove it, and run the "
            "recipe again, so that its results are on record"
        ) from error


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
    """Artifacts and pools that no record refers to and, in the other pools, shards that newer ones replace."""
    records = read_runs(workspace)
    needed = {folder for record in records for folder in record.folders}
    found = []
    for stage in workspace.folders():
        if stage in _KEPT or stage.startswith("."):
            continue
        for name in workspace.folders(stage):
            folder = f"{stage}/{name}"
            # Any other folder was not made by this project.
            if folder not in needed and (stage == SHARDS or _is_digest(name)):
                found.append(Leftover(folder, folder_size(workspace, folder), _finished_at(workspace, folder)))
            elif stage == SHARDS and (
                shards := _replaced(workspace.folder(folder), _pointed_at(workspace, records, name))
            ):
                sizes = _sizes(workspace, folder)
                found.append(Leftover(folder, sum(sizes[shard] for shard in shards), shards=tuple(shards)))
    return found


def _pointed_at(workspace: Storage, records: Sequence[RunRecord], pool: str) -> set[str]:
    """Shards of ``pool`` that the artifacts on record point at."""
    found: set[str] = set()
    for record in records:
        # The lock of a stage over shards has the name of its pool.
        for stage in (stage for stage, lock in record.locks.items() if lock == pool):
            output = workspace.folder(stage, record.stages[stage])
            if output.exists(INDEX_FILE):
                found.update(output.read_table(INDEX_FILE, columns=["shard"]).column("shard").unique().to_pylist())
    return found


def _replaced(pool: Storage, needed: set[str]) -> list[str]:
    """Shards that are not ``needed`` and all of whose rows exist in a newer generation."""
    # Without a second generation nothing is replaced, and no shard has to be looked at.
    if not any(map(generation_of, pool.files(suffix=".parquet"))):
        return []
    # The key is the column that pools of all stages have.
    index = ShardPool(pool, pa.schema([pa.field("key", pa.string(), nullable=False)])).index()
    rows = list(zip(index.column("key").to_pylist(), index.column("shard").to_pylist(), strict=True))
    newest: dict[str, int] = {}
    for key, shard in rows:
        newest[key] = max(newest.get(key, 0), generation_of(shard))
    needed = needed | {shard for key, shard in rows if newest[key] == generation_of(shard)}
    return [shard for shard in pool.files(suffix=".parquet") if shard not in needed]


def remove(workspace: Storage, found: Iterable[Leftover]) -> None:
    """Removes what was ``found`` to be left over in the workspace.

    Raises:
        ValueError: a run is at work in the workspace; nothing was removed.
    """
    busy = owners(workspace)
    if busy:
        name, owner = next(iter(busy.items()))
        raise ValueError(
            f"{workspace.uri} is in use: {owner} is at work on {name}. Nothing was removed; try again when it is done"
        )
    for item in found:
        if item.shards:
            for shard in item.shards:
                workspace.delete(f"{item.folder}/{shard}")
        else:
            discard(workspace.folder(item.folder))


def folder_size(workspace: Storage, folder: str) -> int:
    """Bytes of all files below ``folder``."""
    return sum(_sizes(workspace, folder).values())


def _sizes(workspace: Storage, folder: str) -> dict[str, int]:
    """Bytes of every file below ``folder``, by its path there."""
    root = workspace.path(folder)
    infos = workspace.filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/"): info.size for info in infos if info.type == pafs.FileType.File}


def _finished_at(workspace: Storage, folder: str) -> str | None:
    with suppress(FileNotFoundError, DamagedFileError):
        return str(read_document(workspace.folder(folder))["finished_at"])
    return None


def _is_digest(name: str) -> bool:
    return len(name) == len(digest(None)) and not name.strip("0123456789abcdef")
