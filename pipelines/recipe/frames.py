"""Settings of the stage ``frames``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbi_models.config_fields import only_for, require
from pipelines.recipe.checks import require_counts


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Sampling, decoding and storing frames."""

    fps: float = 1.0
    """Frames sampled per second of video (published: 1)."""

    max_frames: int = 12
    """Frames kept per video, uniformly chosen from the sampled ones (published: 12)."""

    short_side_px: int = 224
    """Length of the shorter side after resizing (bicubic, antialiased)."""

    decoder: Literal["auto", "decord", "pyav", "torchcodec", "nvdec"] = "auto"
    """``auto`` and ``pyav``: PyAV, which reads all files correctly. ``decord`` (as the published implementations),
    ``torchcodec`` (an extra) and ``nvdec`` (torchcodec on a GPU, ``resources.decode.gpus_per_task``) decode the files
    that they read correctly; PyAV decodes the others, which the table of notes names. See docs/decoding.md."""

    format: Literal["jpeg", "png"] = "jpeg"
    """``jpeg``: about a tenth of the raw size; ``png``: lossless."""

    jpeg_quality: int = 90
    """1 to 100."""

    timeout_s: float = only_for(default=120.0)
    """Seconds after which the decoding of one video is abandoned and its process killed."""

    max_memory_gb: float = only_for(default=4.0)
    """Address space that the decoding process may take on top of its start, in GB."""

    videos_per_shard: int = only_for(default=64)
    """Videos per Parquet file: the unit of work and of commit, and the most that a crash loses. Fewer where this would
    give less than 64 files."""

    max_error_fraction: float = only_for(default=0.1)
    """Fraction of undecodable videos above which the stage stops."""

    retry_errors: bool = only_for(default=False)
    """When the stage runs, decode again the videos that an earlier run put into the errors table. To run a finished
    stage again, use ``--force``; it keeps the frames of the other videos."""

    def __post_init__(self) -> None:
        require(self.fps > 0, f"frames.fps is {self.fps}; it must be positive")
        require_counts(self, "frames", "max_frames", "short_side_px", "videos_per_shard")
        require(1 <= self.jpeg_quality <= 100, f"frames.jpeg_quality is {self.jpeg_quality}; it must lie in [1, 100]")
        require(self.timeout_s > 0, f"frames.timeout_s is {self.timeout_s}; it must be positive")
        require(
            0 <= self.max_error_fraction <= 1,
            f"frames.max_error_fraction is {self.max_error_fraction}; it must lie in [0, 1]",
        )
