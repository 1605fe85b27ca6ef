"""The engine that answers requests: an index, its model and, if given, a question answering model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hbi_models.moments import Moment as FoundMoment
from pipelines.models.prediction import load_answerer
from pipelines.search.features import Clip
from pipelines.search.searcher import CANDIDATES, NO_MAP, Searcher
from pipelines.serve.errors import UnknownVideoError, UnusableVideoError
from pipelines.serve.schemas import (
    Answer,
    AskResponse,
    InteractionResponse,
    Match,
    Moment,
    SearchResponse,
    VideoResponse,
    Word,
)
from pipelines.serve.uploads import FORMATS, Upload, Uploads, looks_like_video
from pipelines.video.decode_process import ExtractionError
from pipelines.video.errors import first_line
from pipelines.video.extraction import extract_from_bytes
from pipelines.video.shown import shown_until
from pipelines.workspace.uris import last_name


class Engine:
    """Searches an index, and answers questions about its videos and about uploaded clips.

    Args:
        index: folder or URI of the index.
        video_qa: folder of a question answering model; None = questions are not answered.
        kept_uploads: uploaded clips that are kept.

    Raises:
        FileNotFoundError, ValueError: index or model are not there, or cannot be used.
    """

    def __init__(self, index: str, video_qa: str | None, kept_uploads: int) -> None:
        self._searcher = Searcher(index)
        self._answerer = None if video_qa is None else load_answerer(video_qa)
        self._uploads = Uploads(kept_uploads)

    def status(self) -> dict[str, Any]:
        """Fingerprint of the index, its number of videos, whether it has maps, and whether questions are answered."""
        return {
            "index": last_name(self._searcher.artifact.uri),
            "videos": len(self._searcher),
            "maps": self._searcher.explains,
            "answers": self._answerer is not None,
        }

    def search(self, queries: Sequence[str], tops: Sequence[int]) -> list[SearchResponse]:
        """The best videos for every query, as many as it asks for."""
        # One search for the whole batch; what a query did not ask for is cut off below.
        found = self._searcher.search(queries, top=max(tops), candidates=max(CANDIDATES, *tops))
        return [
            SearchResponse(
                query=query,
                matches=[
                    Match(
                        video_id=match.video_id,
                        name=last_name(match.uri),
                        score=match.score,
                        moment=_moment(match.moment),
                        frames=match.frames,
                    )
                    for match in matches[:top]
                ],
            )
            for query, top, matches in zip(queries, tops, found, strict=True)
        ]

    def interaction(self, query: str, video_id: str) -> InteractionResponse:
        """The interaction of a query and a video.

        Raises ``UnknownVideoError``, or ``UnusableVideoError`` where the index has no maps.
        """
        if not self._searcher.explains:
            raise UnusableVideoError(NO_MAP)
        found = self._searcher.interaction(query, self._clip(video_id))
        return InteractionResponse(
            video_id=video_id,
            words=[Word(text=word.text, special=word.special) for word in found.words],
            time_s=list(found.time_s),
            values=[list(row) for row in found.values],
            score=found.score,
            moment=_moment(found.moment),
        )

    def video(self, video_id: str) -> VideoResponse:
        """When the frames of a video are shown; raises ``UnknownVideoError``."""
        clip = self._clip(video_id)
        return VideoResponse(video_id=video_id, time_s=list(clip.time_s), end_s=clip.end_s)

    def frame(self, video_id: str, number: int) -> bytes:
        """A frame as JPEG or PNG; raises ``UnknownVideoError``."""
        upload = self._uploads.get(video_id)
        try:
            images = upload.images if upload is not None else self._searcher.images(video_id)
        except KeyError:
            raise _unknown(video_id) from None
        if number >= len(images):
            raise UnknownVideoError(f"the video has {len(images)} frames, numbered from 0; there is no {number}")
        return images[number]

    def ask(self, question: str, video_id: str, top: int) -> AskResponse:
        """The best answers; raises ``UnknownVideoError``, or ``UnusableVideoError`` if the file is gone."""
        if self._answerer is None:
            raise UnusableVideoError("this server has no question answering model; start it with --video_qa")
        upload = self._uploads.get(video_id)
        if upload is not None:
            found = self._answerer.answer_about(upload.question_images, question, top=top)
        else:
            try:
                segment = self._searcher.segment(video_id)
            except KeyError:
                raise _unknown(video_id) from None
            try:
                found = self._answerer.answer(
                    segment.uri, question, top=top, start_s=segment.start_s, end_s=segment.end_s
                )
            except (ValueError, OSError) as error:
                # The error's message names the place of the file, which clients should not learn.
                raise UnusableVideoError("the file of this video cannot be read any more") from error
        answers = [Answer(answer=item.answer, probability=item.probability) for item in found]
        return AskResponse(video_id=video_id, question=question, answers=answers)

    def upload(self, content: bytes) -> VideoResponse:
        """Takes a clip in; raises ``UnusableVideoError``."""
        if not looks_like_video(content):
            raise UnusableVideoError(f"this is not a video: the file does not begin like {FORMATS}")
        try:
            # Decoded for each of the two models, which may sample videos in different ways.
            video = extract_from_bytes(content, self._searcher.frames)
            questioned = extract_from_bytes(content, self._answerer.frames).images if self._answerer is not None else []
        except ExtractionError as error:
            raise UnusableVideoError(f"the clip cannot be used ({error.reason}): {first_line(error)}") from error
        source = {"time_s": video.time_s, "source_frames": video.source_frames, "source_fps": video.source_fps}
        end_s = shown_until(source, None)
        clip = Clip(self._searcher.encode_frames(video.images), list(video.time_s), end_s)
        video_id = self._uploads.add(Upload(clip, video.images, questioned))
        return VideoResponse(video_id=video_id, time_s=list(video.time_s), end_s=end_s)

    def _clip(self, video_id: str) -> Clip:
        upload = self._uploads.get(video_id)
        if upload is not None:
            return upload.clip
        try:
            return self._searcher.clip(video_id)
        except KeyError:
            raise _unknown(video_id) from None


def _moment(moment: FoundMoment) -> Moment:
    return Moment(start_s=moment.start_s, end_s=moment.end_s, first=moment.first, stop=moment.stop)


def _unknown(video_id: str) -> UnknownVideoError:
    kind = "is not kept any more; upload it again" if video_id.startswith("upload-") else "is not in the index"
    return UnknownVideoError(f"the video {video_id} {kind}")
