"""Plain-text tables of plans, outcomes and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hbi_models.metric_names import ANSWER_METRICS, DIRECTIONS, PAIR_SCORES, RANK_METRICS, RECALLS_AT
from hbi_models.student import t_interval
from pipelines.evaluate.documents import by_questions, with_interval
from pipelines.progress import format_seconds
from pipelines.recipe.probe import STRENGTH_NAMES
from pipelines.stages.execution import Outcome
from pipelines.stages.plan import Step

if TYPE_CHECKING:
    from pipelines.compare.paired import Difference


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header in aligned columns; columns of numbers, some of which may be missing, to the right."""
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
    return not cell.strip("0123456789.,%()–+- ")


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


def metrics_table(document: Mapping[str, Any]) -> str:
    """Retrieval metrics of both directions with their 95% intervals; the variants follow below the raw ones."""
    named = [("", document), *((values["title"], values) for values in document.get("variants", {}).values())]
    rows = [
        [
            ", ".join(filter(None, (direction.replace("_to_", " → "), title))),
            *(with_interval(values[direction][name]) for name in RANK_METRICS),
        ]
        for title, values in named
        for direction in DIRECTIONS
        if direction in values
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


def negatives_table(document: Mapping[str, Any]) -> str:
    """Accuracies of "true caption above changed one": a row per class, a column per score, with 95% intervals."""
    scores = [name for name in PAIR_SCORES if name in next(iter(document.values()))]
    rows = [
        [kind, f"{values['pairs']:,}", *(with_interval(values[name]) for name in scores)]
        for kind, values in document.items()
    ]
    return table(["changed", "pairs", *scores], rows)


def perturbations_table(document: Mapping[str, Any]) -> str:
    """R@1 of text to video at each strength of each perturbation, with 95% intervals."""
    rows = [
        # The first value is that of unchanged videos, which stands above the table.
        [name, *(with_interval(each) for each in values["recall_at_1"][1:])]
        for name, values in document.items()
        if name != "none"
    ]
    (unperturbed,) = document["none"]["recall_at_1"]
    return f"R@1 without: {with_interval(unperturbed)}\n\n{table(['R@1 with', *STRENGTH_NAMES], rows)}"


def moments_table(document: Mapping[str, Any]) -> str:
    """Metrics of the spans of a search and of the baselines, with 95% intervals."""
    spans = {name: values for name, values in document.items() if isinstance(values, Mapping)}
    metrics = list(next(iter(spans.values())))
    header = [name.replace("recall_at_1_iou_", "R@1 IoU ").replace("mean_average_precision", "mAP") for name in metrics]
    rows = [[name, *(with_interval(values[metric]) for metric in metrics)] for name, values in spans.items()]
    return table(["span", *(name.replace("_", " ") for name in header)], rows)


def reproduction_table(published: Mapping[str, float], measured: Mapping[str, Sequence[float]]) -> str:
    """Figures of several seeds with Student's 95% interval, beside the published ones; by ``part/metric``."""
    rows = []
    for name, values in measured.items():
        part, metric = name.split("/")
        interval = t_interval(values)
        rows.append(
            [
                f"{part.replace('_to_', ' → ')} {metric.replace('recall_at_', 'R@').replace('_', ' ')}",
                f"{published[name]:g}" if name in published else "–",
                f"{fmean(values):.1f}",
                "–" if interval is None else f"{interval[0]:.1f}–{interval[1]:.1f}",
                f"{fmean(values) - published[name]:+.1f}" if name in published else "–",
                ", ".join(f"{value:.1f}" for value in values),
            ]
        )
    return table(["", "published", "ours, mean", "95% over seeds", "difference", "each seed"], rows)


def differences_table(first: str, second: str, differences: Sequence[Difference]) -> str:
    """Metrics of two sides, and their difference with 95% intervals over videos and over seeds."""
    rows = [
        [
            f"{each.part.replace('_to_', ' → ')} {each.metric.replace('recall_at_', 'R@').replace('_', ' ')}",
            f"{each.first:.1f}",
            f"{each.second:.1f}",
            f"{each.difference:+.1f}",
            _bounds(each.over_videos),
            "" if each.over_seeds is None else _bounds(each.over_seeds),
        ]
        for each in differences
    ]
    return table(["", first, second, "difference", "95% over videos", "95% over seeds"], rows)


def _bounds(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:+.1f} to {bounds[1]:+.1f}"
