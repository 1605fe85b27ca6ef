"""Requests and responses of the API."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pipelines.search.limits import MAX_QUERY_CHARS, check_query

MAX_TOP = 100

# The same ids that data sets and collections may have (datasets/video_files.py); an upload's fit, too.
_ID = r"^[A-Za-z0-9_.@-]{1,128}$"


def _checked(text: str) -> str:
    check_query(text)
    return text


Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"\S"),
    # The pattern only informs readers of the schema; it does not cover all blank characters.
    AfterValidator(_checked),
    Field(examples=["a red circle"]),
]
VideoId = Annotated[
    str, StringConstraints(pattern=_ID), Field(description="Id of a video of the index, or of an upload.")
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Body):
    """What to look for."""

    query: Text
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 10


class Moment(BaseModel):
    """The part of a video that matches best: seconds, and its frames ``first`` to ``stop`` (exclusive)."""

    start_s: float
    end_s: float
    first: int
    stop: int


class Match(BaseModel):
    """A video that was found."""

    video_id: str
    name: Annotated[str, Field(description="Name of the file.")]
    score: Annotated[float, Field(description="The model's similarity, the larger the better.")]
    moment: Moment
    frames: Annotated[int, Field(description="Frames that were looked at; each can be fetched.")]


class SearchResponse(BaseModel):
    """The best videos, the best first."""

    query: str
    matches: list[Match]


class InteractionRequest(_Body):
    """A text and a video."""

    query: Text
    video_id: VideoId


class Word(BaseModel):
    """A token of the text; ``special`` are its start and its end."""

    text: str
    special: bool


class InteractionResponse(BaseModel):
    """The exact Banzhaf interaction: a row of ``values`` per word, a column per frame."""

    video_id: str
    words: list[Word]
    time_s: list[float]
    values: list[list[float]]
    score: float
    moment: Moment


class AskRequest(_Body):
    """A question about a video."""

    question: Text
    video_id: VideoId
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 5


class Answer(BaseModel):
    """An answer and its probability."""

    answer: str
    probability: float


class AskResponse(BaseModel):
    """The best answers, the best first."""

    video_id: str
    question: str
    answers: list[Answer]


class VideoResponse(BaseModel):
    """A video and its frames."""

    video_id: str
    time_s: Annotated[list[float], Field(description="When each frame is shown.")]
    end_s: float


class Health(BaseModel):
    """What is served."""

    status: str
    index: Annotated[str, Field(description="Fingerprint of the index.")]
    videos: int
    maps: Annotated[bool, Field(description="Whether there are maps of words and frames.")]
    answers: Annotated[bool, Field(description="Whether questions are answered.")]
    max_upload_bytes: int


class Problem(BaseModel):
    """Why a request was refused, in words."""

    detail: str
