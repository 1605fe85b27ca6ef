"""Paragraph retrieval: the sentences about a video, each about a part of it, become one caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.datasets.annotations import AnnotatedVideo, Annotations, clean_caption
from pipelines.datasets.published_files import Locate, count_warnings, listing_warnings, refuse_shared_videos
from pipelines.recipe.data import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What an annotation file says of one video."""

    sentences: Sequence[str]

    spans: Sequence[object]
    """Start and end of each sentence's part of the video, in whatever unit."""

    end_s: float
    """End in seconds of the segment that the sentences are about; it starts with the video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedSplit:
    """The videos of one split: which they are, and what is said of them."""

    split: Split
    list_name: str
    listed: Sequence[str]
    annotation_name: str
    described: Mapping[str, Description]

    published_videos: int | Sequence[int]
    """Number of listed videos in the published copies."""


def paragraph_annotations(splits: Sequence[DescribedSplit], locate: Locate) -> Annotations:
    """The listed videos with one caption each.

    Raises:
        ValueError: a video is in two lists.
    """
    refuse_shared_videos({given.list_name: given.listed for given in splits})
    videos: list[AnnotatedVideo] = []
    warnings: list[str] = []
    for given in splits:
        paragraphs = {video: _paragraph(description) for video, description in given.described.items()}
        for video in given.listed:
            if paragraph := paragraphs.get(video):
                videos.append(
                    AnnotatedVideo(
                        video_id=video,
                        **locate(video),
                        split=given.split,
                        captions=[paragraph],
                        start_s=0.0,
                        end_s=given.described[video].end_s,
                    )
                )
        with_caption = [video for video, paragraph in paragraphs.items() if paragraph]
        warnings += listing_warnings(given.list_name, given.listed, given.annotation_name, with_caption)
        warnings += _oddities(given)
    warnings += count_warnings(
        (given.list_name, len(given.listed), given.published_videos, "videos") for given in splits
    )
    files = [name for given in splits for name in (given.list_name, given.annotation_name)]
    return Annotations(videos=videos, warnings=warnings, files=files)


def _paragraph(description: Description) -> str:
    return clean_caption(" ".join(description.sentences))


def _oddities(given: DescribedSplit) -> list[str]:
    sentences = [sentence for item in given.described.values() for sentence in item.sentences]
    spans = [span for item in given.described.values() for span in item.spans]
    warnings = []
    if num_empty := sum(not clean_caption(sentence) for sentence in sentences):
        warnings.append(f"{given.annotation_name}: {num_empty:,} empty sentences are left out")
    if num_reversed := sum(not _in_order(span) for span in spans):
        warnings.append(
            f"{given.annotation_name}: {num_reversed:,} sentences end before they start; their times are not used"
        )
    return warnings


def _in_order(span: object) -> bool:
    """Whether ``span`` is a start and an end not before it."""
    if not isinstance(span, (list, tuple)) or len(span) != 2:
        return False
    start, end = span
    return isinstance(start, (int, float)) and isinstance(end, (int, float)) and start <= end
