"""The mean and deviation of the pixels that a CLIP was trained on, by which its input is normalised.

Imports nothing heavy unless open_clip has to be asked about a tag of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hbi_models.clip.configs import ClipConfig
from hbi_models.config_fields import require

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the pixels of OpenAI's CLIP per channel (red, green, blue), on a scale of 0 to 1."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the pixels of OpenAI's CLIP per channel."""

ARCHITECTURES = Path(__file__).parent / "architectures"

PREPROCESSING = "preprocess_cfg"
"""Where open_clip's files say how images are prepared."""


def with_pixel_statistics(clip: ClipConfig) -> ClipConfig:
    """Returns the settings with the mean and deviation that hold for this model; null where they are OpenAI's.

    The settings themselves take precedence, then the architecture's file, then open_clip's entry for the tag. For a
    weights file of one of open_clip's architectures, values are used if all tags of that architecture agree on them.

    Raises:
        ValueError: what is said is not one number for each of the three channels.
    """
    known = _said_in_file(clip.architecture) or _said_by_open_clip(clip)
    mean = _of_three_channels(clip.pixel_mean or known.get("mean") or CLIP_MEAN, clip)
    std = _of_three_channels(clip.pixel_std or known.get("std") or CLIP_STD, clip)
    # A null is left out of fingerprints (``added_later``), so that those of models with OpenAI's values stay.
    return replace(clip, pixel_mean=None if mean == CLIP_MEAN else mean, pixel_std=None if std == CLIP_STD else std)


def _of_three_channels(values: Any, clip: ClipConfig) -> tuple[float, float, float]:
    require(
        isinstance(values, Sequence) and len(values) == 3 and all(isinstance(value, int | float) for value in values),
        f"the pixels of clip.architecture {clip.architecture!r} are said to have the mean or deviation {values}; there "
        "must be one number each for red, green and blue",
    )
    red, green, blue = map(float, values)
    return red, green, blue


def architecture_file(name: str) -> Path | None:
    """Returns the file of an architecture: the one that ``name`` is the path of, or a shipped one."""
    if name.endswith(".json"):
        return Path(name)
    shipped = ARCHITECTURES / f"{name}.json"
    return shipped if shipped.is_file() else None


def _said_in_file(architecture: str) -> Mapping[str, Any]:
    path = architecture_file(architecture)
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        # Building the model reports what is wrong with the file.
        return {}
    found = document.get(PREPROCESSING) if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _said_by_open_clip(clip: ClipConfig) -> Mapping[str, Any]:
    # "openai" needs no question: its values are the default, and open_clip is slow to import.
    if clip.pretrained is None or clip.pretrained == "openai" or architecture_file(clip.architecture):
        return {}
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    if not Path(clip.pretrained).is_file():
        return get_pretrained_cfg(clip.architecture, clip.pretrained) or {}
    tags = [get_pretrained_cfg(clip.architecture, tag) for tag in list_pretrained_tags_by_model(clip.architecture)]
    said = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags if "mean" in tag and "std" in tag}
    if len(said) != 1:
        return {}
    ((mean, std),) = said
    return {"mean": mean, "std": std}
