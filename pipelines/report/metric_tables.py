"""The tables of metrics on the page, with intervals and published values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hbi_models.metric_names import DIRECTIONS, RANK_METRICS
from hbi_models.zero_shot_config import ZERO_SHOT_POOLINGS
from pipelines.evaluate.documents import by_questions, describe_protocol, with_interval
from pipelines.report.content import MetricTable

DIRECTION_TITLES = {direction: direction.replace("_to_", " → ") for direction in DIRECTIONS}
_METRICS = {name: name.replace("recall_at_", "R@").replace("_", " ") for name in RANK_METRICS}


def retrieval_table(
    metrics: Mapping[str, Any], published: Mapping[str, float], alone: Mapping[str, Any] | None = None
) -> MetricTable:
    """Metrics of both directions, with the ``published`` ones and those of other conventions and processing below.

    ``alone`` are those of the pretrained encoder without training, if there are any.
    """
    rows: list[tuple[str, Sequence[str]]] = []
    for direction, title in DIRECTION_TITLES.items():
        rows.append((title, [with_interval(metrics[direction][name]) for name in _METRICS]))
        if known := _published(published, [f"{direction}/{name}" for name in _METRICS]):
            rows.append((f"{title}, published", known))
    if alone is not None:
        for pooling in ZERO_SHOT_POOLINGS:
            for direction, title in DIRECTION_TITLES.items():
                shown = [with_interval(alone[pooling][direction][name]) for name in _METRICS]
                rows.append((f"{title}, encoder without training, {pooling} over frames", shown))
    for values in metrics["variants"].values():
        for direction, title in DIRECTION_TITLES.items():
            if direction in values:
                rows.append(
                    (f"{title}, {values['title']}", [with_interval(values[direction][name]) for name in _METRICS])
                )
    note = f"With 95% bootstrap intervals over videos. Protocol: {describe_protocol(metrics['protocol'])}."
    return MetricTable(list(_METRICS.values()), rows, note)


def answers_table(metrics: Mapping[str, Any], published: Mapping[str, float]) -> MetricTable:
    """Accuracies by type of question, of guessing, and the ``published`` ones."""
    rows: list[tuple[str, Sequence[str]]] = []
    for kind, values in by_questions(metrics["all"]):
        answerable = metrics["answerable"].get(kind)
        rows.append(
            (
                kind,
                [
                    f"{values['questions']:,}",
                    with_interval(values["accuracy"]),
                    with_interval(values["top_5_accuracy"]),
                    "–" if answerable is None else with_interval(answerable["accuracy"]),
                ],
            )
        )
    for name, values in metrics["baselines"].items():
        guesses = [with_interval(values[part]) if part in values else "–" for part in ("all", "answerable")]
        rows.append((name.replace("_", " "), ["", guesses[0], "", guesses[1]]))
    if known := _published(published, ["all/accuracy", "answerable/accuracy"]):
        rows.append(("published", ["", known[0], "", known[1]]))
    note = f"With 95% bootstrap intervals over videos. Protocol: {describe_protocol(metrics['protocol'])}."
    return MetricTable(["questions", "right", "among the best 5", "right, of the answerable"], rows, note)


def _published(published: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """The published value of each of ``names``, or a dash; empty if none is known."""
    known = [published.get(name) for name in names]
    return [] if set(known) == {None} else ["–" if value is None else f"{value:g}" for value in known]
