"""A finished evaluation, read back: its protocol, and the rank of every single query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.config_fields import require
from pipelines.evaluate.documents import ANSWERS_FILE, METRICS_FILE, RANKS_FILE, VARIANTS_FILE, differing
from pipelines.workspace.artifact import ARTIFACT, read_document
from pipelines.workspace.errors import examples
from pipelines.workspace.records import ANSWERS, RANKS
from pipelines.workspace.storage import Storage

STAGES = {"retrieval": "evaluation", "question answering": "qa_evaluation"}
"""The stage that measures a task."""

Query = tuple[str, ...]
"""Identifies a query in all evaluations of one protocol; the second entry is its video."""


@dataclass(frozen=True)
class Measured:
    """One evaluation of one model."""

    place: str
    protocol: Mapping[str, Any]
    ranks: Mapping[str, Mapping[Query, float]]
    """By part (a direction, or ``answers``), the rank of every query; infinite: the vocabulary lacks the answer."""

    @property
    def seed(self) -> Any:
        """Of the training; None where it is not recorded."""
        return self.protocol["checkpoint"].get("seed")


@dataclass(frozen=True)
class Side:
    """Evaluations of one way of training, with a seed each."""

    name: str
    runs: Sequence[Measured]


def read_measured(place: str, variant: str | None = None, *, stage: str) -> Measured:
    """Reads the evaluation at ``place``: a ``metrics.json``, its folder, or a workspace with one evaluation.

    ``variant`` names one of its figures beside the raw ones.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a workspace has several, or an earlier version wrote it, or it is of an encoder alone.
    """
    folder = _folder(place, stage)
    found = folder.read_json(METRICS_FILE)
    document = found if isinstance(found, Mapping) else {}
    require(
        "pretrained" not in document,
        f"{folder.place(METRICS_FILE)} is of an encoder alone (stage zero_shot), whose ranks are not kept; name an "
        "evaluation of a trained model",
    )
    protocol = document.get("protocol")
    require(
        isinstance(protocol, Mapping) and "pairs" in protocol,
        f"{folder.place(METRICS_FILE)} has no protocol, because an earlier version wrote it; run the evaluation again",
    )
    assert isinstance(protocol, Mapping)
    if variant is not None:
        known = document.get("variants", {})
        require(
            variant in known,
            f"{folder.place(METRICS_FILE)} has no variant {variant!r}; it has: {', '.join(known) or 'none'}",
        )
        table = folder.read_table(VARIANTS_FILE)
        table = table.filter(pc.equal(table.column("variant"), variant))
        return Measured(folder.place(), known[variant]["protocol"], _ranks(table.drop_columns(["variant"])))
    if protocol["task"] == "retrieval":
        return Measured(folder.place(), protocol, _ranks(folder.read_table(RANKS_FILE)))
    return Measured(folder.place(), protocol, {"answers": _answers(folder.read_table(ANSWERS_FILE))})


def _folder(place: str, stage: str) -> Storage:
    parent, _, name = place.rpartition("/")
    if name == METRICS_FILE:
        return Storage(parent or ".")
    folder = Storage(place)
    if folder.exists(METRICS_FILE):
        return folder
    # artifact.json is written last: a folder without it is not finished.
    found = [each for each in folder.folders(stage) if folder.folder(stage, each).exists(ARTIFACT)]
    if not found:
        raise FileNotFoundError(
            f"{place} is neither a {METRICS_FILE}, nor the folder of one, nor a workspace with a finished stage {stage}"
        )
    if len(found) > 1:
        finished = {each: str(read_document(folder.folder(stage, each))["finished_at"]) for each in found}
        listed = ", ".join(f"{stage}/{each} ({at})" for each, at in sorted(finished.items(), key=lambda item: item[1]))
        raise ValueError(f"{place} has {len(found)} finished evaluations; name one of them: {listed}")
    return folder.folder(stage, found[0])


def _ranks(table: pa.Table) -> dict[str, dict[Query, float]]:
    ranks: dict[str, dict[Query, float]] = {}
    columns = [table.column(name).to_pylist() for name in RANKS.names]
    for direction, video, caption, rank in zip(*columns, strict=True):
        # As text, so that queries can be sorted; one of video to text has no caption.
        ranks.setdefault(direction, {})[direction, video, str(caption)] = rank
    return ranks


def _answers(table: pa.Table) -> dict[Query, float]:
    require(table.schema.equals(ANSWERS), "the table of answers has other columns; run the stage qa_evaluation again")
    ranks: dict[Query, float] = {}
    asked: dict[tuple[str, str, str], int] = {}
    columns = [table.column(name) for name in ("video_id", "question", "answer")]
    rank = pc.fill_null(table.column("rank"), float("inf"))
    for video, question, answer, value in zip(*(column.to_pylist() for column in (*columns, rank)), strict=True):
        # A question may be asked twice of one video.
        number = asked[video, question, answer] = asked.get((video, question, answer), -1) + 1
        ranks["answers", video, question, answer, str(number)] = value
    return ranks


def require_comparable(sides: Sequence[Side], *, allowed: Sequence[str] = ()) -> None:
    """Checks that all evaluations have one protocol and the same queries; fields of ``allowed`` may differ.

    Raises:
        ValueError: they have not; the message names the fields with both values, and the places.
    """
    first = sides[0].runs[0]
    for side in sides:
        for run in side.runs:
            found = {
                name: both for name, both in differing(first.protocol, run.protocol).items() if name not in allowed
            }
            fields = "; ".join(f"{name}: {one!r} and {other!r}" for name, (one, other) in found.items())
            require(
                not found, f"{first.place} and {run.place} have different protocols and cannot be compared: {fields}"
            )
            for part, ranks in first.ranks.items():
                others = set(ranks).symmetric_difference(run.ranks.get(part, {}))
                require(
                    not others,
                    f"{first.place} and {run.place} have different queries, although their protocols agree: "
                    f"{examples(' '.join(query) for query in sorted(others))}",
                )
