"""What was run in a workspace, and how far it came: ``python -m jobs.status --workspace URI``.

For each recipe that was run there, the latest first: every stage with its fingerprint and state, who works on it, rows,
errors and time; then the errors of videos. Nothing is started or changed. It works while runs are going on, from any
machine that can reach the workspace.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from jobs.settings import recipe_from_document, run_job
from pipelines.graph import make_graph
from pipelines.progress import format_seconds
from pipelines.tables import table
from pipelines.workspace.artifact import read_document
from pipelines.workspace.errors import DamagedFileError
from pipelines.workspace.locks import Owner, owners
from pipelines.workspace.records import ERRORS_FILE
from pipelines.workspace.runs import RunRecord, read_runs
from pipelines.workspace.storage import Storage

_EXAMPLES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job and returns its exit code."""
    parser = ArgumentParser(description="Shows what was run in a workspace, and how far it came.")
    parser.add_argument("--workspace", type=str, required=True, help="Folder or URI.")
    parser.add_argument("--run", type=str | None, help="Only the run with this id.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args(arguments)
    workspace = Storage(options.workspace)
    records = [record for record in read_runs(workspace) if options.run in (None, record.run_id)]
    if not records:
        raise ValueError(f"{workspace.uri} holds no run{f' {options.run}' if options.run else ''}; nothing to show")
    reports = [_report(workspace, record) for record in records]
    if options.json:
        print(json.dumps(reports, indent=2))
        return 0
    print(f"Workspace {workspace.uri}")
    for report in reports:
        print(f"\nRun {report['run']}, last started {report['started_at']}\n\n{_stage_table(report['stages'])}")
        for line in _error_lines(report["stages"]):
            print(line)
    return 0


def _report(workspace: Storage, record: RunRecord) -> dict[str, Any]:
    states, busy = _states(workspace, record), owners(workspace)
    return {
        "run": record.run_id,
        "started_at": record.started_at,
        "stages": [
            {
                "stage": name,
                "fingerprint": fingerprint,
                **_stage(workspace.folder(name, fingerprint), states.get(name), busy.get(record.locks[name])),
            }
            for name, fingerprint in record.stages.items()
        ],
    }


def _states(workspace: Storage, record: RunRecord) -> dict[str, tuple[str, str]]:
    """State and reason of every stage as ``--plan`` gives them; empty if the data cannot be reached from here."""
    try:
        # Another machine may reach the workspace by another address than the one on record.
        graph = make_graph(recipe_from_document({**record.settings, "workspace": workspace.uri}))
    except (OSError, ValueError):
        return {}
    # If annotations or videos have changed since the run, the fingerprints differ from its record.
    return {
        step.stage.name: (step.state, step.reason)
        for step in graph.plan()
        if record.stages.get(step.stage.name) == step.fingerprint
    }


def _stage(output: Storage, planned: tuple[str, str] | None, owner: Owner | None) -> dict[str, Any]:
    finished: Mapping[str, Any] | None = None
    found = ("not done", "")
    try:
        finished, found = read_document(output), ("done", "finished")
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        found = ("damaged", str(error))
    state, why = planned or found
    if owner is not None and finished is None:
        state, why = "running", f"{owner}{f'; {why}' if why else ''}"
    counts = finished["counts"] if finished else {}
    return {
        "state": state,
        "why": why,
        "rows": counts.get("rows"),
        "errors": counts.get("errors"),
        "seconds": finished["seconds"] if finished else None,
        "error_examples": _errors(output),
    }


def _errors(output: Storage) -> list[dict[str, Any]]:
    """Reasons in the errors table with the number of each, and the first videos."""
    if not output.exists(ERRORS_FILE):
        return []
    rows = output.read_table(ERRORS_FILE).to_pylist()
    return [
        {
            "reason": reason,
            "count": count,
            "examples": [f"{row['video_id']}: {row['message']}" for row in rows if row["reason"] == reason][:_EXAMPLES],
        }
        for reason, count in Counter(row["reason"] for row in rows).most_common()
    ]


def _stage_table(stages: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            stage["stage"],
            stage["fingerprint"],
            stage["state"],
            _number(stage["rows"]),
            _number(stage["errors"]),
            "" if stage["seconds"] is None else format_seconds(stage["seconds"]),
            stage["why"],
        ]
        for stage in stages
    ]
    return table(["stage", "fingerprint", "state", "rows", "errors", "time", "why"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{int(value):,}"


def _error_lines(stages: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"  {stage['stage']}: {error['count']:,} {error['reason']}, such as {'; '.join(error['examples'])}"
        for stage in stages
        for error in stage["error_examples"]
    ]


if __name__ == "__main__":
    run_job(main)
