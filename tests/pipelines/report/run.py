"""The artifacts of a finished run, written by hand: small, and with something of everything."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from hbi_models.configs import GameConfig
from hbi_models.retrieval import RetrievalModel
from pipelines.evaluate.protocol import answers_protocol, retrieval_protocol
from pipelines.models.weights import save_model
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.report import ReportConfig
from pipelines.report.reader import Reader
from pipelines.stages.frames import frames_pool
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.records import ANSWERS, ERRORS, ERRORS_FILE, INDEX_FILE, MANIFEST, MANIFEST_FILE, TOP_VIDEOS
from pipelines.workspace.storage import Storage
from tests.tiny_retrieval import IMAGE_PX, MAX_FRAMES, retrieval_config

VIDEOS, BROKEN = 7, "video7"
HOSTILE = "<script>alert('caption')</script> & a \"star\""
"""A caption, a question and an error message that would like to be more than text."""


def report_recipe(folder: Path) -> Recipe:
    """A recipe whose workspace is in ``folder``."""
    return Recipe(
        workspace=str(folder / "workspace"),
        frames=FramesConfig(max_frames=MAX_FRAMES, short_side_px=IMAGE_PX),
        model=retrieval_config(folder, game=GameConfig(teacher="exact", estimator_channels=8)),
        report=ReportConfig(queries=3, figures=1, mistakes=2, published={"text_to_video/recall_at_1": 48.6}),
    )


def finished_run(recipe: Recipe) -> dict[str, Artifact]:
    """What the report of the recipe reads: a broken video, queries good and bad, wrong answers, a tuning."""
    workspace = Storage(recipe.workspace)
    ids = [f"video{number}" for number in range(VIDEOS)]
    _write_data(workspace, recipe, ids)
    _write_training(workspace, recipe)
    _write_evaluations(workspace, ids)
    workspace.write_json("tune/0123/summary.json", {"metric": "validation/score", "stage": "retrieval"})
    workspace.write_bytes("tune/0123/landscape.png", _image("PNG", 0))
    names = ("manifest", "frames", "retrieval", "evaluation", "qa_evaluation")
    return {name: _artifact(workspace, name) for name in names}


def reader_of(artifacts: Mapping[str, Artifact], recipe: Recipe) -> Reader:
    workspace = Storage(recipe.workspace)
    return Reader(artifacts, workspace, frames_pool(workspace, recipe), recipe)


def _artifact(workspace: Storage, name: str) -> Artifact:
    document = {
        "counts": {"rows": VIDEOS, "errors": int(name == "frames")},
        "seconds": 61.0,
        "versions": {"python": "3.11"},
        "finished_at": "2026-01-02T03:04:05+00:00",
    }
    return Artifact(name, f"fingerprint-of-{name}", workspace.folder(name), document)


def _write_data(workspace: Storage, recipe: Recipe, ids: list[str]) -> None:
    manifest, frames = [], []
    for number, name in enumerate([*ids, BROKEN]):
        question = {"question": HOSTILE, "answer": "red", "type": "what", "split": "test"}
        manifest.append(
            {
                "video_id": name,
                "uri": f"{name}.mp4",
                "key": name,
                "split": "train" if number < 3 else "test",
                "captions": [HOSTILE if number == 3 else f"a red circle number {number} moves"],
                "questions": [question],
            }
        )
        if name != BROKEN:
            frames.append(
                {
                    "video_id": name,
                    "key": name,
                    "frames": [_image("JPEG", 10 * number + frame) for frame in range(3)],
                    "frame_index": [0, 8, 16],
                    "time_s": [0.0, 1.0, 2.0],
                    "source_fps": 8.0,
                    "source_frames": 20 + number,
                }
            )
    workspace.write_table(f"manifest/{MANIFEST_FILE}", pa.Table.from_pylist(manifest, schema=MANIFEST))
    pool = frames_pool(workspace, recipe)
    pool.commit(frames)
    workspace.write_table(f"frames/{INDEX_FILE}", pool.index(["video_id"]))
    broken = {"video_id": BROKEN, "uri": "x", "stage": "frames", "reason": "undecodable", "message": HOSTILE}
    workspace.write_table(f"frames/{ERRORS_FILE}", pa.Table.from_pylist([broken], schema=ERRORS))


def _write_training(workspace: Storage, recipe: Recipe) -> None:
    points = [{"step": step, "train/loss": 5 / step, "train/entity_nce": 2 / step} for step in range(1, 9)]
    points.append({"step": 8, "validation/score": 12.5})
    workspace.write_bytes("retrieval/history.jsonl", "".join(json.dumps(point) + "\n" for point in points).encode())
    torch.manual_seed(0)
    folder = Path(workspace.path("retrieval/model"))
    folder.mkdir(parents=True)
    save_model(folder, RetrievalModel(recipe.model), kind="retrieval", config=recipe.model)


def _write_evaluations(workspace: Storage, ids: list[str]) -> None:
    value = {"value": 41.5, "low": 30.25, "high": 52.75}
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50", "median_rank", "mean_rank")
    metrics = {
        "split": "test",
        "checkpoint": workspace.folder("retrieval/model").uri,
        "texts": 4,
        "videos": 4,
        "protocol": retrieval_protocol(
            dataset="generated shapes",
            split="test",
            video_ids=ids[:4],
            captions=["a", "b", "c", "d"],
            video_of_text=[0, 1, 2, 3],
            missing_videos=1,
            videos_without_caption=0,
            checkpoint=workspace.folder("retrieval/model").uri,
            seed=7,
        ),
        **{direction: dict.fromkeys(names, value) for direction in ("text_to_video", "video_to_text")},
        "variants": {"nnn": {"title": "nnn, needs a bank", "text_to_video": dict.fromkeys(names, value)}},
    }
    workspace.write_json("evaluation/metrics.json", metrics)
    rows = []
    for number, rank in ((3, 6.0), (4, 1.0), (5, 1.0), (6, 2.0)):
        others = [name for name in ids if name != f"video{number}"]
        order = [*others[: int(rank) - 1], f"video{number}", *others[int(rank) - 1 :]][:5]
        caption = HOSTILE if number == 3 else f"a red circle number {number} moves"
        rows.append(
            {
                "video_id": f"video{number}",
                "caption_index": 0,
                "caption": caption,
                "rank": rank,
                "score": 0.1,
                "top_videos": order,
                # Video 5 is further ahead than video 4.
                "top_scores": [0.1 * number, 0.3, 0.2, 0.1, 0.0],
            }
        )
    workspace.write_table("evaluation/top_videos.parquet", pa.Table.from_pylist(rows, schema=TOP_VIDEOS))
    answers: list[dict[str, Any]] = []
    for number, (kind, given, probability) in enumerate(
        [("what", "blue", 0.5), ("what", "pink", 0.9), ("what", "white", 0.7), ("how", "two", 0.6), ("how", "red", 0.8)]
    ):
        answers.append(
            {
                "video_id": f"video{number}",
                "question": HOSTILE,
                "type": kind,
                "answer": "red",
                "label": 0,
                "rank": 1.0 if given == "red" else 2.0,
                "correct": given == "red",
                "top_answers": [given],
                "top_probabilities": [probability],
            }
        )
    workspace.write_table("qa_evaluation/answers.parquet", pa.Table.from_pylist(answers, schema=ANSWERS))
    accuracy = {"questions": 5, "accuracy": value, "top_5_accuracy": value}
    document = {
        **{name: metrics[name] for name in ("split", "videos")},
        "protocol": answers_protocol(
            dataset="generated shapes",
            split="test",
            video_ids=ids[:2],
            asked=[("video0", f"what {number}", "red") for number in range(5)],
            questions_per_video=[2, 3],
            answerable=5,
            vocabulary=["red", "blue", "pink", "white", "one", "two"],
            missing_videos=1,
            checkpoint=workspace.folder("retrieval/model").uri,
            seed=7,
        ),
        "questions": 5,
        "vocabulary": 6,
        "all": {"overall": accuracy, "what": accuracy},
        "answerable": {"overall": accuracy},
        "baselines": {"most_frequent_answer": {"answer": "red", "all": value}},
    }
    workspace.write_json("qa_evaluation/metrics.json", document)


def _image(kind: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
