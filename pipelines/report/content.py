"""What the page about a run shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.charts import Chart


@dataclass(frozen=True)
class StageRow:
    """A finished stage in a line."""

    name: str
    fingerprint: str
    rows: str
    errors: str
    time: str
    finished_at: str


@dataclass(frozen=True)
class SplitRow:
    """How much there is in a split."""

    name: str
    videos: int
    captions: int
    questions: int


@dataclass(frozen=True)
class MetricTable:
    """Values with their intervals, a row per direction or type of question."""

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str


@dataclass(frozen=True)
class Shown:
    """A video on the page."""

    video_id: str
    picture: str
    score: float | None
    is_right: bool


@dataclass(frozen=True)
class Query:
    """A caption and what it finds."""

    caption: str
    rank: int
    own: Shown
    found: Sequence[Shown]


@dataclass(frozen=True)
class Mistake:
    """A question that was answered wrongly."""

    video: Shown
    question: str
    answer: str
    given: str
    probability: float


@dataclass(frozen=True)
class Training:
    """The curves of a stage: a title and charts for each kind."""

    stage: str
    groups: Sequence[tuple[str, Sequence[Chart]]]


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    title: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything on the page."""

    title: str
    summary: Sequence[tuple[str, str, str]]
    """Name, value and a remark."""
    settings: str
    """The recipe as YAML."""
    versions: Mapping[str, str]
    workspace: str
    stages: Sequence[StageRow]
    errors: Sequence[Mapping[str, str]]
    num_errors: int
    reasons: Sequence[tuple[str, int]]
    splits: Sequence[SplitRow]
    statistics: Sequence[Chart]
    words: Sequence[tuple[str, int]]
    trainings: Sequence[Training]
    retrieval: MetricTable | None
    best: Sequence[Query]
    worst: Sequence[Query]
    interactions: Sequence[Picture]
    answers: MetricTable | None
    mistakes: Sequence[tuple[str, int, Sequence[Mistake]]]
    """Type of the question, number of mistakes, and some of them."""
    tunings: Sequence[Picture]
