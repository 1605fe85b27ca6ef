"""The inputs of probes: pairs of captions, and moments. Of generated data they are known; for other data they come
from files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from hbi_models.config_fields import require
from pipelines.datasets.moment_files import read_moments
from pipelines.datasets.negatives_file import read_negatives
from pipelines.evaluate.probing import FrameTimes, MomentQuery, Pair
from pipelines.recipe.data import ShapesConfig
from pipelines.recipe.recipe import Recipe
from pipelines.shapes.captions import draw_captions
from pipelines.shapes.data_set import video_id
from pipelines.shapes.events import Script, draw_script
from pipelines.shapes.negatives import negatives_of
from pipelines.splits import SplitView
from pipelines.video.shown import shown_until
from pipelines.workspace.artifact import Artifact
from pipelines.workspace.errors import examples
from pipelines.workspace.records import INDEX_FILE, MANIFEST_FILE
from pipelines.workspace.shards import ShardPool

logger = logging.getLogger(__name__)


def word_pairs(recipe: Recipe, view: SplitView) -> list[Pair]:
    """Every caption of ``view`` with its negatives.

    Raises:
        ValueError: no caption of the user's file is one of the split.
    """
    shapes = recipe.data.shapes
    if recipe.probe.negatives is None and shapes is not None:
        return [
            Pair(video, caption.text, negative, kind)
            for video, script in _scripts(shapes, view).items()
            for caption in draw_captions(shapes, script)
            # The test list has one caption of each clip, and more are drawn here.
            if caption.text in view.texts(video)
            for kind, negative in negatives_of(shapes, script, caption).items()
        ]
    listed = read_negatives(str(recipe.probe.negatives))
    videos: dict[str, list[int]] = {}
    for video in range(len(view)):
        for caption in dict.fromkeys(view.texts(video)):
            videos.setdefault(caption, []).append(video)
    unknown = [each.caption for each in listed if each.caption not in videos]
    _tell_left_out(unknown, len(listed), f"captions of {recipe.probe.negatives} are not captions", recipe.probe.split)
    pairs = [
        Pair(video, each.caption, each.negative, each.kind) for each in listed for video in videos.get(each.caption, ())
    ]
    require(
        bool(pairs),
        f"{recipe.probe.negatives}: no caption is one of the split {recipe.probe.split}; write them as there",
    )
    return pairs


def moment_queries(recipe: Recipe, view: SplitView) -> tuple[list[MomentQuery], float]:
    """Texts with the spans that they describe, and the mean fraction of a video that such a span covers.

    For generated clips with two events, the texts are the words of each event, and the mean is over training clips. For
    the user's file, which has one split, the mean is over the file.

    Raises:
        ValueError: no video of the user's file is in the split.
    """
    shapes = recipe.data.shapes
    if recipe.probe.moments is None and shapes is not None:
        queries = [
            MomentQuery(video, query, [span])
            for video, script in _scripts(shapes, view).items()
            for query, span in _clauses(shapes, script)
        ]
        require(bool(queries), "no clip of the split shows two events; generate more of them (data.shapes)")
        training = (draw_script(shapes, number) for number in range(shapes.train_videos))
        parts = [
            (event.end - event.start) / script.num_frames
            for script in training
            if len(script.events) == 2
            for event in script.events
        ]
        # Without such training clips: two events that share a clip evenly.
        return queries, fmean(parts or [0.5])
    listed, warnings = read_moments(str(recipe.probe.moments), recipe.probe.moments_format)
    for warning in warnings:
        logger.warning("probe: %s", warning)
    positions = {name: position for position, name in enumerate(view.store.video_ids)}
    unknown = [query.video_id for query in listed if query.video_id not in positions]
    _tell_left_out(unknown, len(listed), f"queries of {recipe.probe.moments} are not about videos", recipe.probe.split)
    queries = [
        MomentQuery(positions[query.video_id], query.query, query.spans)
        for query in listed
        if query.video_id in positions
    ]
    require(bool(queries), f"{recipe.probe.moments}: no video is in the split {recipe.probe.split}")
    # Charades-STA has no durations, so the last end of a span about a video stands for that of the video.
    longest = {query.video_id: max(end for _, end in query.spans) for query in listed}
    return queries, fmean((end - start) / longest[query.video_id] for query in listed for start, end in query.spans)


def frame_times(pool: ShardPool, inputs: Mapping[str, Artifact], view: SplitView) -> dict[int, FrameTimes]:
    """When the frames of every video of ``view`` are shown, by its position."""
    index = inputs["frames"].storage.read_table(INDEX_FILE, columns=["video_id", "key", "shard"])
    manifest = inputs["manifest"].storage.read_table(MANIFEST_FILE, columns=["key", "end_s"])
    ends: dict[str, float | None] = dict(
        zip(manifest.column("key").to_pylist(), manifest.column("end_s").to_pylist(), strict=True)
    )
    positions = {name: position for position, name in enumerate(view.store.video_ids)}
    index = index.filter(pc.is_in(index.column("video_id"), value_set=pa.array(view.store.video_ids, pa.string())))
    keys = dict(zip(index.column("key").to_pylist(), index.column("video_id").to_pylist(), strict=True))
    columns = ["key", "time_s", "source_fps", "source_frames", "source_begin_s"]
    found = {}
    for shard in index.column("shard").unique().to_pylist():
        for row in pool.read(shard, columns).to_pylist():
            # A shard also holds videos of other splits and manifests.
            if (name := keys.get(row["key"])) is not None:
                found[positions[name]] = FrameTimes(row["time_s"], shown_until(row, ends[row["key"]]))
    return found


def _tell_left_out(unknown: Sequence[str], total: int, what: str, split: str) -> None:
    if unknown:
        logger.warning(
            "probe: %s of %s %s of the split %s, and are left out: %s",
            f"{len(unknown):,}", f"{total:,}", what, split, examples(unknown),
        )  # fmt: skip


def _scripts(shapes: ShapesConfig, view: SplitView) -> dict[int, Script]:
    # Everything drawn is a function of the seed and the clip's number, so the scripts need not be stored.
    numbers = {video_id(number): number for number in range(shapes.train_videos + shapes.test_videos)}
    return {position: draw_script(shapes, numbers[name]) for position, name in enumerate(view.store.video_ids)}


def _clauses(shapes: ShapesConfig, script: Script) -> list[tuple[str, tuple[float, float]]]:
    """The words of the first caption about each of two events, with its time in seconds."""
    caption = draw_captions(shapes, script)[0]
    if len(caption.clauses) != 2:
        return []
    words = caption.text.split()
    return [
        (
            " ".join(words[clause.start : clause.end]),
            (script.events[clause.event].start / shapes.fps, script.events[clause.event].end / shapes.fps),
        )
        for clause in caption.clauses
    ]
