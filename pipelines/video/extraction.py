"""The row function of the frames stage: a manifest row in, its encoded frames out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.recipe.frames import FramesConfig
from pipelines.video.decode_child import ExtractedVideo, ExtractSettings
from pipelines.video.decode_process import DecodeProcess, ExtractionError, Reason
from pipelines.video.decoder import DecoderChoice
from pipelines.video.errors import first_line
from pipelines.workspace.errors import StorageError, is_forbidden, remedy
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.uris import is_local, shown

MAX_REMOTE_FRACTION = 0.25
"""Part of ``max_memory_gb`` that an object read from a store may take: it is held twice, here and in
the decoding process, where decoding needs the rest."""

Row = Mapping[str, Any]


def make_extract_frames(
    config: FramesConfig, *, process: DecodeProcess | None = None
) -> Callable[[Row], dict[str, Any]]:
    """A function from a row of ``records.MANIFEST`` to one row of ``records.FRAMES`` (1:1).

    It reads ``video_id``, ``uri``, ``key``, ``start_s`` and ``end_s``. A video that cannot be used raises no error: it
    gives a row with ``error_reason`` and without frames. An object store that does not answer raises ``StorageError``,
    and a later run tries its videos again.

    Args:
        config: what to sample and how to store it.
        process: the decoding process to use; by default the calling process has one, started
            at its first video, for all functions with the same limits and decoder.
    """

    def extract_frames(row: Row) -> dict[str, Any]:
        decoding = process or _process_of_this_worker(config.timeout_s, config.max_memory_gb, config.decoder)
        try:
            source = _open_source(row["uri"], max_bytes=int(config.max_memory_gb * 1e9 * MAX_REMOTE_FRACTION))
            return _frames_row(row, decoding.extract(source, _settings(config, row["start_s"], row["end_s"])))
        except ExtractionError as error:
            return _error_row(row, error.reason, first_line(error))

    return extract_frames


def extract_from_bytes(content: bytes, config: FramesConfig) -> ExtractedVideo:
    """The frames of a video file that is in memory, decoded in the process of this worker.

    Raises:
        ExtractionError: there are none.
    """
    return _process_of_this_worker(config.timeout_s, config.max_memory_gb, config.decoder).extract(
        content, _settings(config)
    )


def _settings(config: FramesConfig, start_s: float | None = None, end_s: float | None = None) -> ExtractSettings:
    return ExtractSettings(
        rate=config.fps,
        max_frames=config.max_frames,
        short_side_px=config.short_side_px,
        decoder=config.decoder,
        format=config.format,
        jpeg_quality=config.jpeg_quality,
        start_s=start_s,
        end_s=end_s,
    )


# A service may decode with two settings at once, for its search and for its answers. What falls out ends when unused.
@lru_cache(maxsize=4)
def _process_of_this_worker(timeout_s: float, max_memory_gb: float, decoder: DecoderChoice) -> DecodeProcess:
    return DecodeProcess(timeout_s=timeout_s, max_memory_gb=max_memory_gb, decoder=decoder)


def _open_source(uri: str, *, max_bytes: int) -> str | bytes:
    """The path of a local file, or the contents of an object, read once and kept off the disk."""
    try:
        filesystem, path = resolve(uri)
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise ExtractionError("missing", f"no file at {shown(uri)}")
        if isinstance(filesystem, pafs.LocalFileSystem):
            # The decoders do not say why they cannot open a file.
            Path(path).open("rb").close()
            return str(path)
        if info.size > max_bytes:
            raise ExtractionError(
                "memory",
                f"the object has {info.size / 1e9:.1f} GB; objects of up to {MAX_REMOTE_FRACTION:.0%} of "
                "frames.max_memory_gb are read: raise it",
            )
        with filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except OSError as error:
        message = f"cannot read {shown(uri)}: {first_line(error)}"
        if is_forbidden(error):
            raise ExtractionError("missing", f"{message}; give permission, then set frames.retry_errors") from error
        # Facts about this video, unlike a store that does not answer.
        if is_local(uri) or isinstance(error, FileNotFoundError):
            raise ExtractionError("missing", message) from error
        raise StorageError(f"{message}. {remedy(error)}") from error
    except (ValueError, pa.ArrowException) as error:
        raise ExtractionError("missing", f"cannot read {shown(uri)}: {first_line(error)}") from error


def _frames_row(row: Row, video: ExtractedVideo) -> dict[str, Any]:
    return {
        "video_id": row["video_id"],
        "key": row["key"],
        "frames": video.images,
        "frame_index": video.frame_index,
        "time_s": video.time_s,
        "height_px": video.height_px,
        "width_px": video.width_px,
        "source_fps": video.source_fps,
        "source_frames": video.source_frames,
        "source_begin_s": video.source_begin_s,
        "decoder": video.decoder,
        "notes": video.notes,
        "error_reason": None,
        "error_message": None,
    }


def _error_row(row: Row, reason: Reason, message: str) -> dict[str, Any]:
    return {
        "video_id": row["video_id"],
        "key": row["key"],
        "frames": [],
        "frame_index": [],
        "time_s": [],
        "height_px": None,
        "width_px": None,
        "source_fps": None,
        "source_frames": None,
        "source_begin_s": None,
        "decoder": None,
        "notes": None,
        "error_reason": reason,
        "error_message": message,
    }
