"""Reads from the artifacts of a run what the page about it shows; what a run does not have is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipelines.evaluate.documents import ANSWERS_FILE, METRICS_FILE, TOP_VIDEOS_FILE
from pipelines.progress import format_seconds
from pipelines.recipe.recipe import Recipe
from pipelines.report.charts import curves
from pipelines.report.content import Content, MetricTable, Mistake, Picture, Query, Shown, StageRow, Training
from pipelines.report.data_set import most_frequent_words, splits, statistics
from pipelines.report.metric_tables import DIRECTION_TITLES, answers_table, retrieval_table
from pipelines.report.pictures import Thumbnails, data_uri
from pipelines.train.files import HISTORY
from pipelines.workspace.artifact import Artifact, plain
from pipelines.workspace.records import ERRORS_FILE, INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool
from pipelines.workspace.storage import Storage

_MOST_ERRORS = 1000
_CURVES = (
    ("train/", "Loss and its parts"),
    ("game/", "Importance weights (entropy: 1 = all tokens count alike), and the gradient of the interaction"),
    ("validation/", "Validation"),
    ("learning_rate/", "Learning rates"),
    ("throughput/", "Throughput"),
)


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
        """Everything on the page; the caller draws the figures of the interaction."""
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
            # A page with millions of rows would be of no use; their number and reasons count all.
            errors=errors[:_MOST_ERRORS],
            num_errors=len(errors),
            reasons=Counter(row["reason"] for row in errors).most_common(),
            splits=splits(self._manifest),
            statistics=statistics(self._manifest, self._seen),
            words=most_frequent_words(self._manifest),
            trainings=[training for artifact in artifacts if (training := _training(artifact)) is not None],
            retrieval=self._table("evaluation", partial(retrieval_table, alone=self._metrics("zero_shot"))),
            best=best,
            worst=worst,
            interactions=interactions,
            answers=self._table("qa_evaluation", answers_table),
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
        # Queries of equal rank are ordered by how far the first video is ahead of the second.
        rows.sort(key=lambda row: (row["rank"], -_lead(row), row["video_id"], row["caption_index"]))
        # A tie at the top has rank 1.5 (hbi_models/metrics.py) and is no hit.
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
            for direction, title in DIRECTION_TITLES.items():
                value = metrics[direction]["recall_at_1"]
                tiles.append((f"R@1 {title}", f"{value['value']:.1f}", f"95%: {value['low']:.1f}–{value['high']:.1f}"))
        if (metrics := self._metrics("qa_evaluation")) is not None:
            value = metrics["all"]["overall"]["accuracy"]
            tiles.append(("answers right", f"{value['value']:.1f}", f"95%: {value['low']:.1f}–{value['high']:.1f}"))
        return tiles

    def _metrics(self, stage: str) -> Mapping[str, Any] | None:
        artifact = self._artifacts.get(stage)
        return None if artifact is None else artifact.storage.read_json(METRICS_FILE)

    def _table(
        self, stage: str, table: Callable[[Mapping[str, Any], Mapping[str, float]], MetricTable]
    ) -> MetricTable | None:
        metrics = self._metrics(stage)
        return None if metrics is None else table(metrics, self._recipe.report.published)

    def _mistakes(self) -> list[tuple[str, int, Sequence[Mistake]]]:
        artifact = self._artifacts.get("qa_evaluation")
        if artifact is None:
            return []
        answers = artifact.storage.read_table(ANSWERS_FILE)
        wrong = answers.filter(pc.invert(answers.column("correct"))).to_pylist()
        # Mistakes with the highest probability first: they tell most about the model.
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
    """The first row of each video, so that a video with many captions is shown once."""
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
    # The artifact of features repeats the errors of the frames.
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
