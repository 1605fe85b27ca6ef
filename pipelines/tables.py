"""Plain-text tables of plans, outcomes and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hbi_models.metric_names import ANSWER_METRICS, DIRECTIONS, RANK_METRICS, RECALLS_AT
from pipelines.evaluate.documents import by_questions, with_interval
from pipelines.progress import format_seconds
from pipelines.stages.execution import Outcome
from pipelines.stages.plan import Step


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header in aligned columns; columns of numbers are aligned to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(cells[0]), "  ".join("─" * width for width in widths), *map(line, cells[1:])])


def _is_number(cell: str) -> bool:
    return not cell.strip("0123456789.,%±–- ") and cell != ""


def plan_table(steps: Sequence[Step]) -> str:
    """What a run would do."""
    rows = [[step.stage.name, step.fingerprint, step.state, step.reason] for step in steps]
    return table(["stage", "fingerprint", "state", "why"], rows)


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """What a run did."""
    rows = [
        [
            outcome.step.stage.name,
            outcome.action,
            format_seconds(outcome.seconds) if outcome.action == "done" else "",
            f"{int(outcome.artifact.counts.get('rows', 0)):,}",
            f"{int(outcome.artifact.counts.get('errors', 0)):,}",
            outcome.artifact.fingerprint,
        ]
        for outcome in outcomes
    ]
    return table(["stage", "", "time", "rows", "errors", "fingerprint"], rows)


def metrics_table(document: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Retrieval metrics of both directions with their 95% intervals."""
    rows = [
        [direction.replace("_to_", " → "), *(with_interval(document[direction][name]) for name in RANK_METRICS)]
        for direction in DIRECTIONS
    ]
    return table(["", *(f"R@{k}" for k in RECALLS_AT), "MdR", "MnR"], rows)


def answers_table(document: Mapping[str, Any]) -> str:
    """Accuracies overall and by question type with their 95% intervals, and the baselines below."""
    everything, answerable = document["all"], document["answerable"]
    rows = [
        [
            kind,
            f"{values['questions']:,}",
            *(with_interval(values[name]) for name in ANSWER_METRICS),
            *(with_interval(answerable[kind][name]) if kind in answerable else "" for name in ANSWER_METRICS),
        ]
        for kind, values in by_questions(everything)
    ]
    for name, values in document["baselines"].items():
        accuracies = [with_interval(values[part]) if part in values else "" for part in ("all", "answerable")]
        rows.append([name.replace("_", " "), "", accuracies[0], "", accuracies[1], ""])
    return table(["", "questions", "top-1", "top-5", "answerable top-1", "answerable top-5"], rows)
