"""Features that another model made of videos and captions, in Parquet files of the user's own.

A row with ``frames`` is a video, a row with ``words`` a caption, and a row may be both. Which videos and captions there
are is read here, from the columns of names alone; :class:`GivenFeatures` reads the numbers, a few row groups at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hbi_models.config_fields import require
from pipelines.datasets.annotations import AnnotatedVideo, Annotations, clean_caption
from pipelines.datasets.own_files import drawn_splits
from pipelines.datasets.video_files import VideoFile, check_video_id
from pipelines.recipe.data import SPLITS, Split
from pipelines.workspace.contents import content_digest
from pipelines.workspace.errors import UNREADABLE, examples
from pipelines.workspace.file_systems import resolve
from pipelines.workspace.storage import Storage
from pipelines.workspace.uris import join_uri

_OPEN_GROUPS = 8
"""Row groups that are kept in memory: neighbours in a file are usually read one after the other."""

_NEEDS = "docs/features.md says what such a file holds"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row lies."""

    uri: str
    group: int
    """Its row group."""
    row: int
    """Its place in the group."""


@dataclass
class GivenVideo:
    """A video, as far as its rows have been read: where its frames are, and its captions by their texts."""

    frames: Place | None = None
    split: Split | None = None
    captions: dict[str, Place] = field(default_factory=dict)


def feature_files(place: str) -> list[str]:
    """The Parquet files that ``data.features`` names: itself, or those in the folder.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder holds no Parquet file.
    """
    filesystem, path = resolve(place)
    info = filesystem.get_file_info(path)
    if info.is_file:
        return [place]
    if info.type.name == "NotFound":
        raise FileNotFoundError(f"data.features is {place}, and there is no such file or folder")
    found = [join_uri(place, name) for name in sorted(Storage(place).files(suffix=".parquet"))]
    require(bool(found), f"data.features is {place}, a folder without a file NAME.parquet; {_NEEDS}")
    return found


def features_digest(place: str) -> str:
    """Changes with the contents of the files, wherever they lie."""
    return "\n".join(content_digest(uri) for uri in feature_files(place))


def read_given_videos(place: str) -> dict[str, GivenVideo]:
    """Every video of the files, in their order, with its captions.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a column is missing, or names contradict one another; the message lists the first of them.
    """
    videos: dict[str, GivenVideo] = {}
    problems: list[str] = []
    for uri in feature_files(place):
        for place_of_row, row in _named_rows(uri):
            try:
                _take(videos, place_of_row, row)
            except ValueError as error:
                problems.append(f"{uri}, row group {place_of_row.group}, row {place_of_row.row}: {error}")
    without = [name for name, video in videos.items() if video.frames is None]
    if without:
        problems.append(f"{len(without):,} videos have captions and no frames: {examples(without)}; add their rows")
    named = {name for name, video in videos.items() if video.split is not None}
    if named and len(named) < len(videos):
        problems.append(
            f"{len(videos) - len(named):,} videos have no split and {len(named):,} have one; name it for all or none"
        )
    if not videos:
        problems.append(f"{place} holds no video; {_NEEDS}")
    if problems:
        more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        raise ValueError(f"data.features cannot be used: {'; '.join(problems[:5])}{more}")
    return videos


def read_features_files(place: str) -> Annotations:
    """The videos of ``data.features`` as a data set; raises as :func:`read_given_videos`.

    Without any split, a tenth of the videos become the test split, by a hash of their ids.
    """
    videos = read_given_videos(place)
    warnings: list[str] = []
    splits = {name: video.split for name, video in videos.items() if video.split is not None}
    splits = splits or drawn_splits({name: name for name in videos}, warnings)
    files = {uri: _file(uri) for uri in feature_files(place)}
    entries = [
        AnnotatedVideo(
            video_id=name,
            # Videos of one address would count as segments of one file, which stay together in a split.
            uri=f"{video.frames.uri}#{name}",
            file=files[video.frames.uri],
            split=splits[name],
            captions=list(video.captions),
        )
        for name, video in videos.items()
        if video.frames is not None
    ]
    return Annotations(videos=entries, warnings=warnings, files=tuple(files))


def _file(uri: str) -> VideoFile:
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    return VideoFile(uri, info.size, info.mtime_ns)


def _named_rows(uri: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every row of a file with its names, and whether it holds frames and words."""
    try:
        file = _open(uri)
        there = file.schema_arrow.names
        require("video_id" in there, f"{uri} has no column video_id; it has {', '.join(there)}; {_NEEDS}")
        require(
            "frames" in there or "words" in there,
            f"{uri} has neither a column frames nor a column words; it has {', '.join(there)}; {_NEEDS}",
        )
        require("words" not in there or "caption_id" in there, f"{uri} has words and no column caption_id; {_NEEDS}")
        names = [name for name in ("video_id", "split", "caption_id", "caption") if name in there]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=names)
            for name in ("frames", "words"):
                if name in there:
                    table = table.append_column(name, _held(file, group, name))
            for row, values in enumerate(table.to_pylist()):
                yield Place(uri, group, row), values
    except (*UNREADABLE,) as error:
        # ArrowInvalid is a ValueError, too; the others are those raised above, which already say what is wrong.
        if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException):
            raise
        raise ValueError(f"{uri} cannot be read as Parquet: {error}") from error


def _held(file: pq.ParquetFile, group: int, name: str) -> pa.Array:
    """Which rows of a group hold something in the column ``name``; its numbers are read only where some do not."""
    described = file.metadata.row_group(group)
    columns = [described.column(number) for number in range(described.num_columns)]
    # The path of a nested column continues after its name: frames.list.element and so on.
    statistics = [column.statistics for column in columns if column.path_in_schema.split(".")[0] == name]
    if all(found is not None and found.has_null_count and found.null_count == 0 for found in statistics):
        return pa.array([True] * described.num_rows)
    held = file.read_row_group(group, columns=[name]).column(name)
    return pc.is_valid(held).combine_chunks()


def _take(videos: dict[str, GivenVideo], place: Place, row: dict[str, Any]) -> None:
    name = row["video_id"]
    require(isinstance(name, str) and bool(name), f"video_id is {name!r}; it must be a text")
    check_video_id(name, "this row")
    video = videos.setdefault(name, GivenVideo())
    if row.get("frames"):
        require(video.frames is None, f"video {name!r} has frames already; give each video once")
        video.frames = place
        # Videos stand in the order of their frames, wherever their captions are.
        videos[name] = videos.pop(name)
        if (split := row.get("split")) is not None:
            require(split in SPLITS, f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
            video.split = split
    if row.get("words"):
        require(row.get("caption_id") is not None, f"a caption of {name!r} has no caption_id")
        # Captions are told apart by their text; where there is none, the id takes its place.
        text = clean_caption(str(row.get("caption") or row["caption_id"]))
        require(text not in video.captions, f"video {name!r} has the caption {text!r:.60} twice; give each once")
        video.captions[text] = place


def _open(uri: str) -> pq.ParquetFile:
    filesystem, path = resolve(uri)
    return pq.ParquetFile(filesystem.open_input_file(path))


class GivenFeatures:
    """Reads the features of rows, checked.

    Args:
        word_dim: channels that a word must have.
        frame_dim: those of a frame.
    """

    def __init__(self, *, word_dim: int, frame_dim: int) -> None:
        self._dims = {"words": word_dim, "frames": frame_dim}
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def __call__(self, kind: str, place: Place, *, name: str, most: int) -> NDArray[np.float32]:
        """The real tokens of ``kind`` (words or frames) of a row, [tokens, dim].

        Args:
            kind: which column.
            place: of the row.
            name: what the row is of, for messages.
            most: tokens that the model takes.

        Raises:
            ValueError: the numbers cannot be used; the message says of what and why.
        """
        table = self._group(place)
        place_of = f"{name} ({place.uri}, row group {place.group}, row {place.row})"
        tokens = _array(table.column(kind)[place.row], f"{kind} of {place_of}")
        require(
            tokens.shape[1] == self._dims[kind],
            f"{kind} of {place_of} have {tokens.shape[1]} channels, and model.tokens.{kind[:-1]}_dim is "
            f"{self._dims[kind]}; set it to {tokens.shape[1]}, or mend the file",
        )
        # The mask comes first, because only real tokens count against the number that the model takes.
        mask = f"{kind[:-1]}_mask"
        if mask in table.column_names and (given := table.column(mask)[place.row].as_py()) is not None:
            require(
                len(given) == len(tokens),
                f"{mask} of {place_of} has {len(given)} entries for {len(tokens)} tokens; give one for each",
            )
            tokens = tokens[np.asarray(given, bool)]
        if kind == "frames" and "times" in table.column_names:
            self._check_times(table.column("times")[place.row].as_py(), table.column(kind)[place.row], place_of)
        require(len(tokens) > 0, f"{place_of} has no real {kind}; leave the row out, or mend its mask")
        require(
            len(tokens) <= most,
            f"{place_of} has {len(tokens)} {kind}, and the model takes {most}; raise model.max_{kind} to "
            f"{len(tokens)}" + (" and frames.max_frames with it" if kind == "frames" else ""),
        )
        require(
            bool(np.isfinite(tokens).all()),
            f"{kind} of {place_of} hold numbers that are not finite, the first in token "
            f"{int(np.argmin(np.isfinite(tokens).all(axis=1)))}; mend the file",
        )
        return tokens

    def _check_times(self, times: Sequence[float] | None, frames: Any, place_of: str) -> None:
        if times is None:
            return
        require(
            len(times) == len(frames),
            f"times of {place_of} has {len(times)} entries for {len(frames)} frames; give one for each, in seconds",
        )
        seconds = np.asarray(times, np.float64)
        require(
            bool(np.isfinite(seconds).all()) and bool((np.diff(seconds) >= 0).all()),
            f"times of {place_of} are not finite seconds that never fall",
        )

    def _group(self, place: Place) -> pa.Table:
        key = (place.uri, place.group)
        if key not in self._groups:
            file = _open(place.uri)
            wanted = ("words", "word_mask", "frames", "frame_mask", "times")
            columns = [name for name in wanted if name in file.schema_arrow.names]
            self._groups[key] = file.read_row_group(place.group, columns=columns).combine_chunks()
            if len(self._groups) > _OPEN_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def _array(value: Any, what: str) -> NDArray[np.float32]:
    """A list of tokens, each a list of as many numbers, as an array."""
    kind = value.type
    is_list = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    nested = any(check(kind) for check in is_list) and any(check(kind.value_type) for check in is_list)
    require(
        nested and pa.types.is_floating(kind.value_type.value_type),
        f"{what} are of the type {kind}; a list of tokens is needed, each a list of floating-point numbers",
    )
    tokens = value.values
    require(not tokens.null_count, f"{what} hold a token that is null")
    # Equal lengths, so that the flat numbers can take the shape of a matrix.
    lengths = np.unique(pc.list_value_length(tokens).to_numpy(zero_copy_only=False))
    require(len(lengths) <= 1, f"{what} have tokens of {', '.join(map(str, lengths))} channels; all need the same")
    numbers = tokens.flatten()
    require(not numbers.null_count, f"{what} hold a number that is null")
    dim = int(lengths[0]) if len(lengths) else 0
    array: NDArray[np.float32] = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    return array.reshape(len(tokens), dim)
