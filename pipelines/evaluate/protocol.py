"""The protocol that is recorded with every metric: what it was measured on, and how.

Two figures can be compared if their protocols agree in everything that affects the difficulty of the task: queries,
gallery, convention for several captions, and post-processing. How the checkpoint was chosen belongs to it: one that was
chosen on the tested videos is not comparable with one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.datasets.protocols import NamedProtocol
from pipelines.models.folder import SELECTION, is_published_file, model_folder
from pipelines.workspace.artifact import digest

NOT_RECORDED = "not recorded"

EVERY_CAPTION = "every caption is a query"
BEST_CAPTION = "rank of the video's best-ranked caption among all captions"


def selection_of(checkpoint: str) -> Mapping[str, Any]:
    """How ``checkpoint`` was chosen among those of its training, as the training wrote it beside the model."""
    if is_published_file(checkpoint):
        return {"chosen": f"{NOT_RECORDED}; the published code chooses on the test set"}
    folder = model_folder(checkpoint)
    if not folder.exists(SELECTION):
        return {"chosen": NOT_RECORDED}
    selection: Mapping[str, Any] = folder.read_json(SELECTION)
    return selection


def spread(counts: Sequence[int]) -> dict[str, float]:
    """Minimum, mean and maximum of one or more counts."""
    return {"least": min(counts), "mean": round(sum(counts) / len(counts), 3), "most": max(counts)}


def retrieval_protocol(
    *,
    dataset: str,
    split: str,
    video_ids: Sequence[str],
    captions: Sequence[str],
    video_of_text: Sequence[int],
    missing_videos: int,
    videos_without_caption: int,
    checkpoint: str,
    seed: int,
    named: NamedProtocol | None = None,
) -> dict[str, Any]:
    """The protocol of the raw figures of a retrieval evaluation."""
    per_video = [0] * len(video_ids)
    for video in video_of_text:
        per_video[video] += 1
    # Sorted, so that the digest does not depend on the order of the manifest.
    pairs = sorted((video_ids[video], text) for text, video in zip(captions, video_of_text, strict=True))
    return {
        "task": "retrieval",
        "dataset": dataset,
        "named": None if named is None else named.checked(len(video_ids), len(captions)),
        "split": split,
        "gallery_videos": len(video_ids),
        "text_queries": len(captions),
        "captions_per_video": spread(per_video),
        "missing_videos": missing_videos,
        "videos_without_caption": videos_without_caption,
        "pairs": digest(pairs),
        "text_to_video": EVERY_CAPTION,
        "video_to_text": BEST_CAPTION,
        "post_processing": "none",
        "checkpoint": selection_of(checkpoint),
        "seeds": {"evaluation": seed},
    }


def answers_protocol(
    *,
    dataset: str,
    split: str,
    video_ids: Sequence[str],
    asked: Sequence[tuple[str, str, str]],
    questions_per_video: Sequence[int],
    answerable: int,
    vocabulary: Sequence[str],
    missing_videos: int,
    checkpoint: str,
    seed: int,
) -> dict[str, Any]:
    """The protocol of an evaluation of question answering; ``asked`` are video id, question and right answer."""
    return {
        "task": "question answering",
        "dataset": dataset,
        "split": split,
        "videos": len(video_ids),
        "questions": len(asked),
        "answerable_questions": answerable,
        "questions_per_video": spread(questions_per_video),
        "vocabulary": len(vocabulary),
        "missing_videos": missing_videos,
        # With other answers to choose from, the same questions are another test.
        "pairs": digest([sorted(asked), sorted(vocabulary)]),
        "answer": "the best of the vocabulary; all: answers outside it are wrong; answerable: without those",
        "checkpoint": selection_of(checkpoint),
        "seeds": {"evaluation": seed},
    }
