"""Each sentence describes a part of a video. Either all sentences of a video are joined to one caption (paragraph
retrieval), or each is a caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.datasets.annotations import AnnotatedVideo, Annotations, clean_caption
from pipelines.datasets.published_files import (
    count_warnings,
    listing_warnings,
    locate_by_stem,
    refuse_shared_videos,
    require_files,
)
from pipelines.datasets.video_files import VideoFolder
from pipelines.recipe.data import Split
from pipelines.workspace.storage import Storage

Queries = Literal["paragraph", "sentence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What an annotation file says of one video."""

    sentences: Sequence[str]

    spans: Sequence[object]
    """Start and end of each sentence's part of the video, in whatever unit."""

    end_s: float
    """End in seconds of the segment that the sentences are about; it starts with the video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParagraphDataset:
    """A data set whose annotation folder holds two files per split: a list of videos, and their descriptions."""

    title: str
    """Its name in sentences."""

    files: Mapping[Split, tuple[str, str]]
    """The list and the annotation file of each split."""

    published_videos: Mapping[Split, Sequence[int]]
    """Numbers of videos in the lists of the published copies."""

    read_ids: Callable[[Storage, str], Sequence[str]]
    """The ids in a list, each once."""

    read_descriptions: Callable[[Storage, str], Mapping[str, Description]]
    """The descriptions in an annotation file, by video id."""

    @property
    def annotation_files(self) -> list[str]:
        """Names of all files, each once."""
        # One file may be both list and annotations: val_2.json of ActivityNet.
        return list(dict.fromkeys(name for names in self.files.values() for name in names))

    def read(self, annotations: Storage, videos: VideoFolder, queries: Queries = "paragraph") -> Annotations:
        """The listed videos, each with all its sentences joined to one caption, or with each as one.

        Raises:
            FileNotFoundError: an annotation file is missing.
            ValueError: a file does not have its published form, or a video is in two lists.
        """
        require_files(annotations, self.annotation_files, dataset=self.title)
        splits = [
            _DescribedSplit(
                split, *names, self.read_ids(annotations, names[0]), self.read_descriptions(annotations, names[1])
            )
            for split, names in self.files.items()
        ]
        refuse_shared_videos({given.list_name: given.listed for given in splits})
        locate = locate_by_stem(videos)
        entries: list[AnnotatedVideo] = []
        warnings: list[str] = []
        for given in splits:
            captions = {video: _captions(description, queries) for video, description in given.described.items()}
            for video in given.listed:
                if texts := captions.get(video):
                    entries.append(
                        AnnotatedVideo(
                            video_id=video,
                            **locate(video),
                            split=given.split,
                            captions=texts,
                            start_s=0.0,
                            end_s=given.described[video].end_s,
                        )
                    )
            with_caption = [video for video, texts in captions.items() if texts]
            warnings += listing_warnings(given.list_name, given.listed, given.annotation_name, with_caption)
            warnings += _oddities(given)
        warnings += count_warnings(
            (given.list_name, len(given.listed), self.published_videos[given.split], "videos") for given in splits
        )
        return Annotations(videos=entries, warnings=warnings, files=self.annotation_files)


@dataclass(frozen=True, slots=True)
class _DescribedSplit:
    """What the two files of a split hold."""

    split: Split
    list_name: str
    annotation_name: str
    listed: Sequence[str]
    described: Mapping[str, Description]


def _captions(description: Description, queries: Queries) -> list[str]:
    texts = description.sentences if queries == "sentence" else [" ".join(description.sentences)]
    return [caption for text in texts if (caption := clean_caption(text))]


def _oddities(given: _DescribedSplit) -> list[str]:
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
    """Whether ``span`` is a start and an end, and the end is not before the start."""
    if not isinstance(span, (list, tuple)) or len(span) != 2:
        return False
    start, end = span
    return isinstance(start, (int, float)) and isinstance(end, (int, float)) and start <= end
