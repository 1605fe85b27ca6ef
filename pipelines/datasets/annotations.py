"""What the adapter of a data set gives to the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipelines.datasets.video_files import VideoFile
from pipelines.recipe.data import Split

OVERALL = "overall"
"""Name of the metrics over all questions, beside those of each type; no type may have this name."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a video and its answer; ``kind`` is its type: what, who, how, when, where or another.

    ``split`` is the question's own: MSR-VTT-QA splits the videos in another way than the
    retrieval lists do.
    """

    question: str
    answer: str
    kind: str
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedVideo:
    """One video, or segment of one, with its sentences."""

    video_id: str

    uri: str
    """Address of the file, or where it was expected."""

    file: VideoFile | None
    """The file at ``uri``; absent if there is no file or it cannot be used."""

    split: Split
    captions: Sequence[str]
    questions: Sequence[Question] = ()
    start_s: float | None = None
    end_s: float | None = None

    why_missing: str = "no such file"
    """Why ``file`` is absent; without meaning where it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """All videos of a data set in the order of its files."""

    videos: Sequence[AnnotatedVideo]

    warnings: Sequence[str] = field(default=())
    """Sentences with counts, for the log and the report."""

    files: Sequence[str] = field(default=())
    """Addresses of the files that were read."""


QUESTION_WORDS = ("what", "who", "how", "when", "where", "why", "which", "whose", "whom")
"""A question without a type has its first word as type if that is one of these."""

OTHER_TYPE = "other"


def question_type(question: str) -> str:
    """The question word with which ``question`` starts, or ``other``."""
    word = question.lower().partition(" ")[0].rstrip("?")
    # "what's" and "who’s" are what and who.
    word = word.replace("’", "'").partition("'")[0]
    return word if word in QUESTION_WORDS else OTHER_TYPE


def storable(text: str) -> str:
    """``text`` without characters that no file can hold.

    JSON can hold half of a character beyond U+FFFF, such as in a caption that was cut off inside an emoji.
    """
    return text.encode("utf-8", "ignore").decode("utf-8")


def clean_caption(text: str) -> str:
    """``text`` in one line without outer spaces, and without characters that no file can hold."""
    return " ".join(storable(text).split())


def count_by_split(videos: Iterable[AnnotatedVideo]) -> Counter[Split]:
    """Number of videos in each split."""
    return Counter(video.split for video in videos)
