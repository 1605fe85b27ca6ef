"""Schema of every dataset that travels between stages, with units.

Times are seconds; segments are half-open, ``[start_s, end_s)``, on the clock of the file: what a player shows, 0 where
its sound or pictures begin. ``time_s`` of frames counts from the first frame shown. The two differ where pictures begin
later than the sound, by ``source_begin_s``. Everything is Parquet; lists are plain Arrow lists, so any Parquet reader
can open the files.
"""

from __future__ import annotations

import pyarrow as pa

MANIFEST_FILE = "manifest.parquet"
INDEX_FILE = "index.parquet"
"""Where the rows of an artifact lie: their key, shard and row in the shard."""
ERRORS_FILE = "errors.parquet"

_BULK = {"bulk": "true"}
"""Marks a column of a shard that takes much space and is read row by row."""


def is_bulk(field: pa.Field) -> bool:
    """Whether a column of a shard is left out of the shard's directory."""
    return bool(field.metadata) and field.metadata.get(b"bulk") == b"true"


QUESTION = pa.struct(
    [("question", pa.string()), ("answer", pa.string()), ("type", pa.string()), ("split", pa.string())]
)
"""``type`` is the question word (what, who, how, when, where) or the data set's own; ``split`` is
the question's, which may differ from its video's: MSR-VTT-QA has lists of its own."""

MANIFEST = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("questions", pa.list_(QUESTION), nullable=False),
    ]
)
"""One row per video (or segment of one): ``uri`` is a path or URI of the file; ``key`` is a
digest of id, uri, size, modification time, start and end, taken from one listing of the folder, by
which later stages know what they have already done; absent ``start_s`` or ``end_s`` means the
file's start or end."""

ERRORS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One row per video that a stage could not use: ``reason`` is one word of a closed set
(``missing``, ``undecodable``, ``no_frames``, ``timeout``, ``crash``, ``memory``), ``message``
says more."""

NOTES_FILE = "notes.parquet"
NOTES = ERRORS
"""One row per remark about a video that is used all the same: ``late_start`` (frames before the first key frame are
left out), ``several_streams`` (which one is taken), ``counted`` (the file has no times, frames are counted),
``no_picture`` (a packet shows nothing of its own), ``ends_early`` (fewer frames than announced), ``not_decord``,
``not_torchcodec`` or ``not_nvdec`` (PyAV read what the other would read wrongly, or cannot read) and ``wrong_times``
(what a decoder returned was not what was asked for, and another way was taken)."""

FRAMES = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("frames", pa.list_(pa.binary()), nullable=False, metadata=_BULK),
        pa.field("frame_index", pa.list_(pa.int32()), nullable=False, metadata=_BULK),
        pa.field("time_s", pa.list_(pa.float64()), nullable=False),
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("source_fps", pa.float64()),
        pa.field("source_frames", pa.int32()),
        pa.field("source_begin_s", pa.float64()),
        pa.field("decoder", pa.string()),
        pa.field("notes", pa.string()),
        pa.field("error_reason", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
"""One row per video of the manifest: encoded images in temporal order with their index and presentation time in the
source, after its first frame. ``source_fps`` is the mean rate: ``source_frames / source_fps`` is how long the source is
shown. ``notes`` are lines ``reason: message``, see ``NOTES``. A row with ``error_reason`` holds no frames."""

LABELS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("num_words", pa.int32(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("similarity", pa.list_(pa.float32()), nullable=False, metadata=_BULK),
        pa.field("word_logits", pa.list_(pa.float32()), nullable=False, metadata=_BULK),
        pa.field("frame_logits", pa.list_(pa.float32()), nullable=False, metadata=_BULK),
        pa.field("interaction", pa.list_(pa.float32()), nullable=False, metadata=_BULK),
    ]
)
"""One row per (text, video) pair: cosine of each real word and frame (row-major, words first),
importance logits, and the interaction label of each cell. ``caption_index`` counts the video's
captions, or its training and validation questions where the data has no captions."""

FEATURES = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("coarse", pa.list_(pa.float16()), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False, metadata=_BULK),
        pa.field("features", pa.list_(pa.float16()), nullable=False, metadata=_BULK),
        pa.field("logits", pa.list_(pa.float32()), nullable=False, metadata=_BULK),
        pa.field("time_s", pa.list_(pa.float64()), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),
    ]
)
"""One row per searchable video: its vector for the first pass of a search, and what the model's own
similarity needs: ``tokens`` real tokens at each level, their features (levels, tokens, channels; row-major)
and importance logits. ``time_s`` are the times of the frames, ``end_s`` where the last one ends."""


def tokens_schema(dtype: str) -> pa.Schema:
    """Rows of features of words and frames, whose numbers are ``float16`` or ``float32``.

    One row per video. ``frames`` holds ``views`` copies (the clip as it is, then augmented ones) of ``num_frames``
    frames each, and ``words`` the real words of ``texts`` one after the other, ``num_words`` of each; both with all
    channels of a token side by side. ``max_words`` is the length at which a text was cut, 0 where it was not.
    ``bytes`` is the size of both.
    """
    numbers = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    return pa.schema(
        [
            pa.field("video_id", pa.string(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("frames", pa.list_(numbers), nullable=False, metadata=_BULK),
            pa.field("num_frames", pa.int32(), nullable=False),
            pa.field("views", pa.int32(), nullable=False),
            pa.field("words", pa.list_(numbers), nullable=False, metadata=_BULK),
            pa.field("texts", pa.list_(pa.string()), nullable=False, metadata=_BULK),
            pa.field("max_words", pa.list_(pa.int32()), nullable=False, metadata=_BULK),
            pa.field("num_words", pa.list_(pa.int32()), nullable=False, metadata=_BULK),
            pa.field("bytes", pa.int64(), nullable=False),
        ]
    )


RANKS = pa.schema(
    [
        pa.field("direction", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32()),
        pa.field("rank", pa.float64(), nullable=False),
    ]
)
"""One row per query: ``direction`` is ``text_to_video`` or ``video_to_text`` (then without a
caption index); ranks start at 1."""

VARIANT_RANKS = pa.schema([pa.field("variant", pa.string(), nullable=False), *RANKS])
"""The same of the figures beside the raw ones: ``variant`` names the convention or the post-processing."""

TOP_VIDEOS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("rank", pa.float64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("top_videos", pa.list_(pa.string()), nullable=False),
        pa.field("top_scores", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row per text-to-video query: the caption, the rank and the score of its own video, and the best
videos with their scores, the best first."""

ANSWERS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("rank", pa.float64()),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("top_answers", pa.list_(pa.string()), nullable=False),
        pa.field("top_probabilities", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row per evaluated question: ``answer`` is the right one, ``label`` its class id and ``rank``
its place among all answers, from 1; both are absent where the vocabulary does not hold it. The
best answers come with their probabilities, the best first."""
