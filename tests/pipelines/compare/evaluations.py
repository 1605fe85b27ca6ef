"""Evaluations as the stages leave them, of ranks that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.evaluate.documents import ANSWERS_FILE, METRICS_FILE, RANKS_FILE
from pipelines.evaluate.protocol import answers_protocol, retrieval_protocol
from pipelines.models.folder import DESCRIPTION, SELECTION
from pipelines.workspace.records import ANSWERS, RANKS
from pipelines.workspace.storage import Storage


def write_retrieval(folder: Storage, ranks: Mapping[str, Sequence[float]], *, seed: int = 1, **changes: Any) -> str:
    """Commits the evaluation of captions with these ranks, by video; a video is found at its first caption's rank."""
    videos = list(ranks)
    texts = [(video, number) for video in videos for number in range(len(ranks[video]))]
    rows = [
        {"direction": "text_to_video", "video_id": video, "caption_index": number, "rank": ranks[video][number]}
        for video, number in texts
    ] + [{"direction": "video_to_text", "video_id": video, "rank": ranks[video][0]} for video in videos]
    protocol = retrieval_protocol(
        **{
            "dataset": "msvd",
            "split": "test",
            "video_ids": videos,
            "captions": [f"{video} {number}" for video, number in texts],
            "video_of_text": [videos.index(video) for video, _ in texts],
            "missing_videos": 0,
            "videos_without_caption": 0,
            "checkpoint": _model(folder, seed),
            "seed": 0,
            **changes,
        }
    )
    folder.write_table(RANKS_FILE, pa.Table.from_pylist(rows, schema=RANKS))
    folder.write_json(METRICS_FILE, {"protocol": protocol})
    return folder.uri


def write_answers(folder: Storage, correct: Mapping[str, Sequence[bool]]) -> str:
    """Commits the evaluation of questions, by video, that were answered rightly or not."""
    rows = [
        {
            "video_id": video,
            "question": f"what is {number}",
            "type": "what",
            "answer": "cat",
            "label": 0,
            "rank": 1.0 if right else 2.0,
            "correct": right,
            "top_answers": [],
            "top_probabilities": [],
        }
        for video, rights in correct.items()
        for number, right in enumerate(rights)
    ]
    protocol = answers_protocol(
        dataset="msrvtt_qa",
        split="test",
        video_ids=list(correct),
        asked=[(str(row["video_id"]), str(row["question"]), "cat") for row in rows],
        questions_per_video=[len(rights) for rights in correct.values()],
        answerable=len(rows),
        vocabulary=["cat", "dog"],
        missing_videos=0,
        checkpoint=_model(folder, 1),
        seed=0,
    )
    folder.write_table(ANSWERS_FILE, pa.Table.from_pylist(rows, schema=ANSWERS))
    folder.write_json(METRICS_FILE, {"protocol": protocol})
    return folder.uri


def _model(folder: Storage, seed: int) -> str:
    model = folder.folder("model")
    model.write_json(DESCRIPTION, {"kind": "retrieval"})
    model.write_json(SELECTION, {"chosen": "best epoch", "split": "val", "videos": 9, "epochs": 2, "seed": seed})
    return model.uri
