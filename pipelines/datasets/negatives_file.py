"""The user's own negatives: captions with a word changed so that they are false, and which kind of word it is."""

from __future__ import annotations

from dataclasses import dataclass

from hbi_models.config_fields import require
from pipelines.datasets.annotations import clean_caption
from pipelines.datasets.record_files import Problems, RecordFormat, read_records, text_of

NEGATIVES = RecordFormat(
    setting="probe.negatives",
    columns=("caption", "negative", "class"),
    needs="caption, negative and class",
    is_complete=lambda present: {"caption", "negative", "class"} <= set(present),
)


@dataclass(frozen=True, slots=True)
class Negative:
    """A true caption and a false one."""

    caption: str
    negative: str
    kind: str
    """The class, such as colour or order."""


def read_negatives(file: str) -> list[Negative]:
    """The lines of a CSV or JSONL with columns ``caption``, ``negative`` and ``class``.

    Raises:
        ValueError: a value is missing, a negative is its caption, or there is no line.
    """
    problems, found = Problems(file), []
    for number, record in read_records(file, NEGATIVES):
        values = {column: clean_caption(text_of(record, column)) for column in NEGATIVES.columns}
        if absent := [column for column, value in values.items() if not value]:
            problems.add(number, f"it lacks {' and '.join(absent)}")
        elif values["caption"] == values["negative"]:
            problems.add(number, "the negative is the caption itself")
        else:
            found.append(Negative(values["caption"], values["negative"], values["class"]))
    problems.raise_if_any()
    require(bool(found), f"{file} holds no negative; write lines with caption, negative and class")
    return found
