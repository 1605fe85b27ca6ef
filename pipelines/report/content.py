"""What the page shows, read from the artifacts of a run; what a run does not have is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from hbi_models.metric_names import DIRECTIONS, RANK_METRICS
from pipelines.evaluate.documents import ANSWERS_FILE, METRICS_FILE, TOP_VIDEOS_FILE, by_questions
from pipelines.progress import format_seconds
from pipelines.recipe.data import SPLITS
from pipelines.recipe.recipe import Recipe
from pipelines.report.charts import Chart, curves, histogram
from pipelines.report.pictures import Thumbnails, data_uri
from pipelines.train.files import HISTORY
from pipelines.workspace.artifact import Artifact, plain
from pipelines.workspace.records import ERRORS_FILE, INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

_MOST_ERRORS = 1000
_MOST_WORDS = 30
_ROWS_AT_ONCE = 100_000
_METRICS = {name: name.replace("recall_at_", "R@").replace("_", " ") for name in RANK_METRICS}
_DIRECTIONS = {direction: direction.replace("_to_", " → ") for direction in DIRECTIONS}
_CURVES = (
    ("train/", "Loss and its parts"),
    ("validation/", "Validation"),
    ("learning_rate/", "Learning rates"),
    ("throughput/", "Throughput"),
)


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
    """Name, value and more about it."""
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
    """Type, how many there are, and some of them."""
    tunings: Sequence[Picture]


class Reader:
    """Reads the artifacts of a run for its page.

    Args:
        artifacts: what the stages of the run made, by stage, in their order.
        workspace: where tunings may lie.
        pool: the shards of the frames.
        recipe: of the run.
    """

    def __init__(self, artifacts: Mapping[str, Artifact], workspace: Storage, pool: ShardPool, recipe: Recipe) -> None:
        self._artifacts, self._workspace, self._recipe = artifacts, workspace, recipe
        self._manifest = self._artifacts["manifest"].storage.read_table(
            MANIFEST_FILE, columns=["video_id", "split", "captions", "questions"]
        )
        index = self._artifacts["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "shard", "row"])
        self.thumbnails = Thumbnails(pool.storage, index)
        # The shards hold rows of other manifests, too.
        seen = pool.index(["time_s", "source_fps", "source_frames"])
        places = seen.select(["shard", "key"]).append_column("place", pa.array(range(len(seen)), pa.int64()))
        mine = index.join(places, ["shard", "key"], join_type="inner")
        self._seen = seen.take(mine.column("place")).append_column("video_id", mine.column("video_id"))

    def content(self, interactions: Sequence[Picture]) -> Content:
        """All of the page; the figures of the interaction are the caller's."""
        artifacts, recipe = list(self._artifacts.values()), self._recipe
        errors = [row for artifact in artifacts for row in _errors(artifact)]
        best, worst = self.queries
        return Content(
            title=recipe.data.dataset if recipe.data.shapes is None else "generated shapes",
            summary=self._summary(len(errors)),
            settings=yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True),
            versions=artifacts[-1].document["versions"],
            workspace=self._workspace.uri,
            stages=[_stage_row(artifact) for artifact in artifacts],
            errors=errors[:_MOST_ERRORS],
            num_errors=len(errors),
            reasons=Counter(row["reason"] for row in errors).most_common(),
            splits=self._splits(),
            statistics=self._statistics(),
            words=self._most_frequent_words(),
            trainings=[training for artifact in artifacts if (training := _training(artifact)) is not None],
            retrieval=self._retrieval(),
            best=best,
            worst=worst,
            interactions=interactions,
            answers=self._answers(),
            mistakes=self._mistakes(),
            tunings=_tunings(self._workspace),
        )

    @cached_property
    def queries(self) -> tuple[list[Query], list[Query]]:
        """The best and the worst text-to-video queries, the best and the worst first."""
        artifact, most = self._artifacts.get("evaluation"), self._recipe.report.queries
        if artifact is None:
            return [], []
        rows = artifact.storage.read_table(TOP_VIDEOS_FILE).to_pylist()
        # Of equally ranked ones, how far the first is ahead of the next.
        rows.sort(key=lambda row: (row["rank"], -_lead(row), row["video_id"], row["caption_index"]))
        best = [row for row in _first_of_each_video(rows, most) if row["rank"] == 1]
        worst = [row for row in _first_of_each_video(rows[::-1], most) if row["rank"] > 1]
        return [self._query(row) for row in best], [self._query(row) for row in worst]

    @property
    def checkpoint(self) -> str | None:
        """The retrieval model that was evaluated, if there is one."""
        metrics = self._metrics("evaluation")
        return None if metrics is None else str(metrics["checkpoint"])

    def video(self, video_id: str) -> tuple[list[bytes], list[float]]:
        """The compressed frames of a video that has some, and their times in seconds."""
        (row,) = self._seen.filter(pc.equal(self._seen.column("video_id"), video_id)).select(["time_s"]).to_pylist()
        return self.thumbnails.encoded(video_id), row["time_s"]

    def _query(self, row: Mapping[str, Any]) -> Query:
        found = [
            self._shown(video_id, score, is_right=video_id == row["video_id"])
            for video_id, score in zip(row["top_videos"], row["top_scores"], strict=True)
        ]
        own = self._shown(row["video_id"], row["score"], is_right=True)
        return Query(row["caption"], round(row["rank"]), own, found)

    def _shown(self, video_id: str, score: float | None = None, *, is_right: bool = False) -> Shown:
        return Shown(video_id, self.thumbnails.of(video_id), score, is_right)

    def _summary(self, num_errors: int) -> list[tuple[str, str, str]]:
        seconds = sum(artifact.document["seconds"] for artifact in self._artifacts.values())
        tiles = [
            ("videos", f"{self._manifest.num_rows:,}", f"{num_errors:,} could not be used"),
            ("time", format_seconds(seconds), f"{len(self._artifacts)} stages"),
        ]
        if (metrics := self._metrics("evaluation")) is not None:
            for direction, title in _DIRECTIONS.items():
                value = metrics[direction]["recall_at_1"]
                tiles.append((f"R@1 {title}", f"{value['value']:.1f}", f"95%: {value['low']:.1f}–{value['high']:.1f}"))
        if (metrics := self._metrics("qa_evaluation")) is not None:
            value = metrics["all"]["overall"]["accuracy"]
            tiles.append(("answers right", f"{value['value']:.1f}", f"95%: {value['low']:.1f}–{value['high']:.1f}"))
        return tiles

    def _metrics(self, stage: str) -> Mapping[str, Any] | None:
        artifact = self._artifacts.get(stage)
        return None if artifact is None else artifact.storage.read_json(METRICS_FILE)

    def _splits(self) -> list[SplitRow]:
        rows = []
        asked = pc.list_flatten(self._manifest.column("questions")).to_pylist()
        questions = Counter(question["split"] for question in asked)
        for split in SPLITS:
            part = self._manifest.filter(pc.equal(self._manifest.column("split"), split))
            captions = pc.sum(pc.list_value_length(part.column("captions"))).as_py() or 0
            if len(part) or questions[split]:
                rows.append(SplitRow(split, len(part), captions, questions[split]))
        return rows

    def _statistics(self) -> list[Chart]:
        charts = []
        for split in SPLITS:
            part = self._manifest.filter(pc.equal(self._manifest.column("split"), split))
            lengths = pc.list_value_length(_words(pc.list_flatten(part.column("captions")))).to_numpy()
            if len(lengths):
                charts.append(histogram(f"words of a caption, {split}", lengths))
            seconds = self._durations(part)
            if len(seconds):
                charts.append(histogram(f"seconds of a video, {split}", seconds))
        return charts

    def _durations(self, part: pa.Table) -> np.ndarray:
        """Seconds of the files of some rows of the manifest."""
        mine = self._seen.filter(pc.is_in(self._seen.column("video_id"), part.column("video_id").combine_chunks()))
        seconds = pc.divide(mine.column("source_frames").cast(pa.float64()), mine.column("source_fps"))
        return np.asarray(seconds.drop_null())

    def _most_frequent_words(self) -> list[tuple[str, int]]:
        counts: Counter[str] = Counter()
        for rows in self._manifest.select(["captions"]).to_batches(max_chunksize=_ROWS_AT_ONCE):
            words = pc.utf8_lower(pc.utf8_trim(pc.list_flatten(_words(pc.list_flatten(rows.column(0)))), ".,!?;:\"'()"))
            for found in pc.value_counts(words).to_pylist():
                counts[found["values"]] += found["counts"]
        return counts.most_common(_MOST_WORDS)

    def _retrieval(self) -> MetricTable | None:
        metrics = self._metrics("evaluation")
        if metrics is None:
            return None
        published, rows = self._recipe.report.published, []
        for direction, title in _DIRECTIONS.items():
            rows.append((title, [_interval(metrics[direction][name]) for name in _METRICS]))
            known = {name: published.get(f"{direction}/{name}") for name in _METRICS}
            if any(value is not None for value in known.values()):
                rows.append(
                    (f"{title}, published", ["–" if value is None else f"{value:g}" for value in known.values()])
                )
        note = (
            f"{metrics['texts']:,} texts and {metrics['videos']:,} videos of the split {metrics['split']}, with 95% "
            f"bootstrap intervals. Protocol: {metrics['protocol']}."
        )
        return MetricTable(list(_METRICS.values()), rows, note)

    def _answers(self) -> MetricTable | None:
        metrics = self._metrics("qa_evaluation")
        if metrics is None:
            return None
        rows: list[tuple[str, Sequence[str]]] = []
        for kind, values in by_questions(metrics["all"]):
            answerable = metrics["answerable"].get(kind)
            rows.append(
                (
                    kind,
                    [
                        f"{values['questions']:,}",
                        _interval(values["accuracy"]),
                        _interval(values["top_5_accuracy"]),
                        "–" if answerable is None else _interval(answerable["accuracy"]),
                    ],
                )
            )
        for name, values in metrics["baselines"].items():
            guesses = [_interval(values[part]) if part in values else "–" for part in ("all", "answerable")]
            rows.append((name.replace("_", " "), ["", guesses[0], "", guesses[1]]))
        published = [self._recipe.report.published.get(f"{part}/accuracy") for part in ("all", "answerable")]
        if any(value is not None for value in published):
            shown = ["–" if value is None else f"{value:g}" for value in published]
            rows.append(("published", ["", shown[0], "", shown[1]]))
        note = (
            f"{metrics['questions']:,} questions about {metrics['videos']:,} videos of the split {metrics['split']}, "
            f"{metrics['vocabulary']:,} answers to choose from. Protocol: {metrics['protocol']}."
        )
        return MetricTable(["questions", "right", "among the best 5", "right, of the answerable"], rows, note)

    def _mistakes(self) -> list[tuple[str, int, Sequence[Mistake]]]:
        artifact = self._artifacts.get("qa_evaluation")
        if artifact is None:
            return []
        answers = artifact.storage.read_table(ANSWERS_FILE)
        wrong = answers.filter(pc.invert(answers.column("correct"))).to_pylist()
        # The surest ones first: they are the most telling.
        wrong.sort(key=lambda row: (-row["top_probabilities"][0], row["video_id"], row["question"]))
        of_kind: dict[str, list[Mapping[str, Any]]] = {}
        for row in wrong:
            of_kind.setdefault(row["type"], []).append(row)
        most_frequent = sorted(of_kind.items(), key=lambda item: len(item[1]), reverse=True)
        return [
            (kind, len(rows), [self._mistake(row) for row in rows[: self._recipe.report.mistakes]])
            for kind, rows in most_frequent
        ]

    def _mistake(self, row: Mapping[str, Any]) -> Mistake:
        return Mistake(
            self._shown(row["video_id"]),
            row["question"],
            row["answer"],
            row["top_answers"][0],
            row["top_probabilities"][0],
        )


def _first_of_each_video(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """A video with many captions is shown once."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["video_id"], row)
    return list(first.values())[:most]


def _lead(row: Mapping[str, Any]) -> float:
    scores = row["top_scores"]
    return float(scores[0] - scores[1]) if len(scores) > 1 else 0.0


def _stage_row(artifact: Artifact) -> StageRow:
    counts, document = artifact.counts, artifact.document
    return StageRow(
        artifact.stage,
        artifact.fingerprint,
        f"{int(counts.get('rows', 0)):,}",
        f"{int(counts.get('errors', 0)):,}",
        format_seconds(document["seconds"]),
        document["finished_at"],
    )


def _errors(artifact: Artifact) -> list[dict[str, str]]:
    if not artifact.storage.exists(ERRORS_FILE):
        return []
    # Features repeat what the frames say.
    return [row for row in artifact.storage.read_table(ERRORS_FILE).to_pylist() if row["stage"] == artifact.stage]


def _training(artifact: Artifact) -> Training | None:
    if not artifact.storage.exists(HISTORY):
        return None
    history = [json.loads(line) for line in artifact.storage.read_bytes(HISTORY).splitlines()]
    groups = [(title, charts) for prefix, title in _CURVES if (charts := curves(history, prefix))]
    return Training(artifact.stage, groups)


def _tunings(workspace: Storage) -> list[Picture]:
    """The maps of the tunings that have ended in the workspace."""
    pictures = []
    # Earlier versions put them into the folder "search".
    for parent in ("tune", "search"):
        for name in workspace.folders(parent):
            folder = workspace.folder(parent, name)
            if folder.exists("summary.json") and folder.exists("landscape.png"):
                summary = folder.read_json("summary.json")
                title = f"{summary['metric']} of {summary['stage']}, tuning {name}"
                pictures.append(Picture(title, data_uri("png", folder.read_bytes("landscape.png"))))
    return pictures


def _interval(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.1f} ({metric['low']:.1f}–{metric['high']:.1f})"


def _words(texts: Any) -> Any:
    """The words of each text."""
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
