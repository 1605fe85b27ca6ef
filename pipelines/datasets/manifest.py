"""The manifest: one row per video of any data set, and one error per video that is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipelines.datasets.adapters import ADAPTERS
from pipelines.datasets.annotations import AnnotatedVideo, Annotations, count_by_split
from pipelines.datasets.captions_file import read_captions_file
from pipelines.datasets.features_file import features_digest, read_features_files
from pipelines.datasets.near_misses import named_alike, what_is_there
from pipelines.datasets.published_files import read_id_lines
from pipelines.datasets.questions_file import attach_questions, read_questions_file
from pipelines.datasets.video_files import (
    NO_FILE,
    VideoFile,
    VideoFolder,
    list_videos,
    video_key,
)
from pipelines.recipe.data import DataConfig, Split
from pipelines.workspace.contents import content_digest
from pipelines.workspace.errors import examples
from pipelines.workspace.records import ERRORS, MANIFEST
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import last_name, parent_uri

STAGE = "manifest"
"""Name of the stage in the errors table."""

MAX_VALIDATION_FRACTION = 1 / 3
"""The validation split takes at most this part of the training videos."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """``table`` follows ``records.MANIFEST``, ``errors`` ``records.ERRORS``; ``warnings`` are sentences."""

    table: pa.Table
    errors: pa.Table
    missing: Mapping[Split, int]
    """Number of videos without a file, for each split that has any."""

    warnings: Sequence[str]


def build_manifest(config: DataConfig, *, annotations: str | None = None, videos: str | None = None) -> Manifest:
    """The manifest of the configured data set, in the order of its annotation files.

    Args:
        config: which data set.
        annotations: where the annotations are, if not at ``config.annotations`` (a generated
            data set lies in the workspace).
        videos: likewise for the videos.

    Raises:
        FileNotFoundError: annotations or the folder of videos are not there.
        ValueError: the annotations cannot be used, or too many videos are missing.
    """
    annotated, folder = _read(config, annotations or config.annotations, videos or config.videos)
    # Before the check for missing files: a video that is not tested need not be there.
    if config.test_videos is not None:
        annotated = _only_listed(annotated, config.test_videos)
    _refuse_missing(annotated, config, folder)
    warnings = [*annotated.warnings, *(folder.troubles() if folder is not None else ())]
    entries = _carve_validation(annotated.videos, config.validation_videos, warnings)
    # Only now, so that it moves the questions about the videos that were just carved, too.
    entries = _validate_with_questions(entries)
    missing = [entry for entry in entries if entry.file is None]
    missing_by_split = count_by_split(missing)
    if missing:
        splits = ", ".join(f"{count:,} of {split}" for split, count in missing_by_split.items())
        warnings.append(
            f"{len(missing):,} of {len(entries):,} videos are missing, {splits} "
            f"({examples(map(_why_missing, missing), separator='; ')}); they are in the errors table"
        )
        warnings += named_alike([entry.uri for entry in missing], folder)
    if not any(entry.split == "train" and entry.file is not None for entry in entries):
        warnings.append("there is no training video")
    return Manifest(
        table=pa.Table.from_pylist(
            [_manifest_row(entry, entry.file) for entry in entries if entry.file is not None], schema=MANIFEST
        ),
        errors=pa.Table.from_pylist([_error_row(entry) for entry in missing], schema=ERRORS),
        missing=missing_by_split,
        warnings=warnings,
    )


def manifest_digest(config: DataConfig, *, annotations: str | None = None, videos: str | None = None) -> str:
    """Changes when an annotation file's content or the listing of the videos changes; no video is read.

    Raises:
        FileNotFoundError: annotations or the folder of videos are not there.
    """
    if config.features is not None:
        return features_digest(config.features)
    annotations, videos = annotations or config.annotations, videos or config.videos
    digest = hashlib.sha256()
    if config.questions is not None:
        digest.update(content_digest(config.questions).encode())
    if config.dataset == "captions_file":
        if annotations is not None:
            digest.update(content_digest(annotations).encode())
        # Lines of the user's own files may name videos anywhere, so listing one folder is not enough.
        for entry in _read_own(config, annotations, videos).videos:
            digest.update(repr((entry.uri, entry.file)).encode())
        return digest.hexdigest()
    annotations, videos = _require(config, annotations, videos)
    folder = Storage(annotations)
    required, optional = ADAPTERS[config.dataset].files(config)
    present = set(folder.files())
    for name in (*required, *optional):
        content = folder.read_bytes(name) if name in present else b""
        # The lengths tell where a file ends, and an empty file is not the same as none.
        digest.update(f"{name}\n{name in present}\n{len(content)}\n".encode() + content)
    digest.update(list_videos(videos).digest().encode())
    return digest.hexdigest()


def _read(config: DataConfig, annotations: str | None, videos: str | None) -> tuple[Annotations, VideoFolder | None]:
    """The annotated videos, and the listing in which they were looked for, if there is one."""
    folder = None
    if config.features is not None:
        return read_features_files(config.features), None
    if config.dataset == "captions_file":
        annotated = _read_own(config, annotations, videos)
    else:
        annotations, videos = _require(config, annotations, videos)
        folder = list_videos(videos)
        annotated = ADAPTERS[config.dataset].read(Storage(annotations), folder, config)
    if config.questions is not None and not config.is_questions_alone:
        annotated = attach_questions(annotated, config.questions, videos)
    return annotated, folder


def _read_own(config: DataConfig, annotations: str | None, videos: str | None) -> Annotations:
    """The videos of the user's own captions, or of the questions where there are no captions."""
    if annotations is not None:
        return read_captions_file(annotations, videos)
    if config.questions is not None:
        return read_questions_file(config.questions, videos)
    raise ValueError(
        "data.annotations is not set; data.dataset captions_file needs a CSV or JSONL file of captions there, or one "
        "of questions in data.questions"
    )


def _require(config: DataConfig, annotations: str | None, videos: str | None) -> tuple[str, str]:
    title = ADAPTERS[config.dataset].title
    if annotations is None:
        raise ValueError(
            f"data.annotations is not set; data.dataset {config.dataset} needs the folder of {title}'s annotation files"
        )
    if videos is None:
        raise ValueError(f"data.videos is not set; data.dataset {config.dataset} needs the folder of the videos")
    return annotations, videos


def _only_listed(annotated: Annotations, file: str) -> Annotations:
    """The same without the test videos that ``file`` does not list.

    Raises:
        ValueError: it lists a video that is no test video.
    """
    listed = set(read_id_lines(Storage(parent_uri(file)), last_name(file)))
    unknown = sorted(listed.difference(entry.video_id for entry in annotated.videos if entry.split == "test"))
    if unknown:
        raise ValueError(
            f"data.test_videos: {len(unknown):,} of the {len(listed):,} ids in {file} are not test videos: "
            f"{examples(unknown)}"
        )
    kept = [entry for entry in annotated.videos if entry.split != "test" or entry.video_id in listed]
    return replace(annotated, videos=kept)


def _refuse_missing(annotated: Annotations, config: DataConfig, folder: VideoFolder | None) -> None:
    entries = annotated.videos
    missing = [entry for entry in entries if entry.file is None]
    if not entries:
        raise ValueError(
            f"data.dataset {config.dataset}: not one video has a caption or a question in "
            f"{', '.join(annotated.files)}. " + " ".join(f"{warning}." for warning in annotated.warnings)
        )
    # Data without a single video are refused even if max_missing_fraction is 1.
    if len(missing) == len(entries) or len(missing) > config.max_missing_fraction * len(entries):
        there = what_is_there([entry.uri for entry in missing], folder)
        allowed = f"; data.max_missing_fraction allows {config.max_missing_fraction:.1%}"
        todo = "Check data.videos, or raise data.max_missing_fraction"
        if len(missing) == len(entries):
            allowed, todo = "", "Check data.videos and the names in the annotations"
        raise ValueError(
            f"{len(missing):,} of {len(entries):,} videos are missing ({len(missing) / len(entries):.1%}) that "
            f"{', '.join(annotated.files)} name, among them {examples(map(_why_missing, missing), separator='; ')}"
            f"{allowed}. What is there: {there}. {todo}"
        )


def _why_missing(entry: AnnotatedVideo) -> str:
    if entry.why_missing == NO_FILE:
        return f"no file at {entry.uri}"
    return f"cannot use {entry.uri}: {entry.why_missing}"


def _carve_validation(entries: Sequence[AnnotatedVideo], wanted: int, warnings: list[str]) -> list[AnnotatedVideo]:
    """Moves whole training files with the smallest hashes to the validation split.

    The choice does not depend on the order of the files, and few videos move when others are added.
    """
    counts = count_by_split(entries)
    if counts["val"] or not wanted:
        return list(entries)
    allowed = int(counts["train"] * MAX_VALIDATION_FRACTION)
    if wanted > allowed:
        warnings.append(
            f"data.validation_videos is {wanted:,} but there are only {counts['train']:,} training videos; "
            f"{allowed:,} become the validation split"
        )
    segments: dict[str, list[AnnotatedVideo]] = {}
    for entry in entries:
        if entry.split == "train":
            segments.setdefault(entry.uri, []).append(entry)
    carved: set[str] = set()
    # The hash is of the id and not of the address: moving the data set must not change the split.
    for members in sorted(segments.values(), key=lambda group: _hash(min(entry.video_id for entry in group))):
        # A file with too many segments is passed over; a smaller one after it may still fit.
        if len(carved) + len(members) <= min(wanted, allowed):
            carved.update(entry.video_id for entry in members)
    return [replace(entry, split="val") if entry.video_id in carved else entry for entry in entries]


def _validate_with_questions(entries: Sequence[AnnotatedVideo]) -> list[AnnotatedVideo]:
    """Moves the training questions about validation videos to the validation split, if the data has no validation
    questions."""
    if any(question.split == "val" for entry in entries for question in entry.questions):
        return list(entries)
    return [
        replace(
            entry,
            questions=[
                replace(question, split="val") if question.split == "train" else question
                for question in entry.questions
            ],
        )
        if entry.split == "val"
        else entry
        for entry in entries
    ]


def _manifest_row(entry: AnnotatedVideo, file: VideoFile) -> dict[str, object]:
    return {
        "video_id": entry.video_id,
        "uri": entry.uri,
        "key": video_key(entry.video_id, file, entry.start_s, entry.end_s),
        "start_s": entry.start_s,
        "end_s": entry.end_s,
        "split": entry.split,
        "captions": list(entry.captions),
        "questions": [
            {"question": item.question, "answer": item.answer, "type": item.kind, "split": item.split}
            for item in entry.questions
        ],
    }


def _error_row(entry: AnnotatedVideo) -> dict[str, str]:
    return {
        "video_id": entry.video_id,
        "uri": entry.uri,
        "stage": STAGE,
        "reason": "missing",
        "message": f"{entry.split} video: {_why_missing(entry)}",
    }


def _hash(video_id: str) -> str:
    # The prefix makes this draw independent of others that hash an id, such as that of the two validation halves.
    return hashlib.sha256(f"validation\n{video_id}".encode()).hexdigest()
