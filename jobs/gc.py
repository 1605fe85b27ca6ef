"""Lists or removes what no run in a workspace refers to: ``python -m jobs.gc --workspace URI [--remove]``.

Every run of a recipe is recorded in the workspace, and its results are kept. ``--forget RUN`` deletes the record of a
run (ids: ``python -m jobs.status``), ``--keep_latest N`` those of all but the latest N. What only these runs needed is
then listed, and removed with ``--remove``.
"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from jobs.settings import run_job
from pipelines.tables import table
from pipelines.workspace.runs import Leftover, folder_size, forget_run, leftovers, read_runs, remove
from pipelines.workspace.storage import Storage


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = ArgumentParser(description="Lists, and on request removes, what no run in a workspace refers to.")
    parser.add_argument("--workspace", type=str, required=True, help="Folder or URI.")
    parser.add_argument("--forget", type=list[str], default=[], help="Ids of runs to strike off the record.")
    parser.add_argument("--keep_latest", type=int | None, help="Strike all but so many latest runs off the record.")
    parser.add_argument("--remove", action="store_true", help="Remove what is listed.")
    options = parser.parse_args(arguments)
    workspace = Storage(options.workspace)
    if options.keep_latest is not None and options.keep_latest < 1:
        raise ValueError(f"keep_latest is {options.keep_latest}; it must be 1 or more")
    for run_id in options.forget:
        forget_run(workspace, run_id)
    if options.keep_latest is not None:
        for record in read_runs(workspace)[options.keep_latest :]:
            forget_run(workspace, record.run_id)
    runs = read_runs(workspace)
    rows = []
    for record in runs:
        others = {folder for other in runs if other is not record for folder in other.folders}
        alone = [folder for folder in record.folders if folder not in others]
        size = sum(folder_size(workspace, folder) for folder in alone)
        rows.append([record.run_id, record.started_at, f"{size / 1e6:,.1f}"])
    print(f"Workspace {workspace.uri}\n\nRuns on record\n\n{table(['run', 'last started', 'MB of its own'], rows)}\n")
    found = leftovers(workspace)
    if not found:
        print("Nothing is left over: a run on record refers to every artifact.")
        return 0
    rows = [[item.folder, f"{item.size_bytes / 1e6:,.1f}", _state(item)] for item in found]
    print(f"No run refers to\n\n{table(['folder', 'MB', 'finished'], rows)}\n")
    total = sum(item.size_bytes for item in found)
    if options.remove:
        remove(workspace, found)
        print(f"Removed {len(found):,} folders, {total / 1e6:,.1f} MB.")
    else:
        print(f"{len(found):,} folders, {total / 1e6:,.1f} MB; --remove removes them.")
    return 0


def _state(item: Leftover) -> str:
    return f"{len(item.shards):,} shards that were made anew" if item.shards else item.finished_at or "no"


if __name__ == "__main__":
    run_job(main)
