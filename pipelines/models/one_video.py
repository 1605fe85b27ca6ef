"""One video file and one model folder, without Ray and without a workspace."""

from __future__ import annotations

from typing import Any

from hbi_models.config_reading import config_from_plain
from pipelines.models.folder import FRAMES_JSON
from pipelines.recipe.frames import FramesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.video.extraction import make_extract_frames
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import absolute_uri


def read_video(
    video: str, frames: FramesConfig, *, start_s: float | None = None, end_s: float | None = None
) -> dict[str, Any]:
    """The row of ``records.FRAMES`` of a video file, decoded in a process that can be killed.

    Args:
        video: path or URI.
        frames: how to sample and decode it.
        start_s: start of the segment that is meant; None = the file's.
        end_s: its end, likewise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded.
    """
    uri = absolute_uri(video)
    # Names and keys belong to rows that are stored, and this one is not.
    row = make_extract_frames(frames)({"video_id": "", "uri": uri, "key": "", "start_s": start_s, "end_s": end_s})
    if row["error_reason"] == "missing":
        raise FileNotFoundError(f"{video}: {row['error_message']}")
    if row["error_reason"] is not None:
        raise ValueError(f"{video} cannot be used ({row['error_reason']}): {row['error_message']}")
    return row


def frames_of(checkpoint: str, recipe: Recipe | None = None) -> FramesConfig:
    """How the training videos of the model in the folder ``checkpoint`` were sampled.

    If the folder does not say so, ``recipe`` does.

    Raises:
        FileNotFoundError: neither says it.
    """
    folder = Storage(checkpoint)
    if folder.exists(FRAMES_JSON):
        config: FramesConfig = config_from_plain(
            FramesConfig, folder.read_json(FRAMES_JSON), place=folder.place(FRAMES_JSON)
        )
        return config
    if recipe is None:
        raise FileNotFoundError(
            f"{checkpoint} holds no {FRAMES_JSON}, which says how its videos were sampled; give the folder model of a "
            "finished training, or with --config the recipe that it was trained with"
        )
    return recipe.frames
