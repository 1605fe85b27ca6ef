"""When the frames of a stored video are shown, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown_until(source: Mapping[str, Any], end_s: float | None) -> float:
    """When the last frame of a video ends, on the clock of ``time_s``: with the file, or with the wanted segment."""
    last = float(source["time_s"][-1])
    duration: float = max(source["source_frames"] / source["source_fps"], last)
    return duration if end_s is None else max(min(duration, float(end_s) - source["source_begin_s"]), last)
