"""MSVD in the layout of CLIP4Clip's release.

Annotation folder: ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` (one id per line) and
``raw-captions.pkl`` (a pickled dictionary from id to captions, each a list of words). Videos:
``<id>.<any video suffix>`` somewhere below one folder, ``.avi`` as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.datasets.annotations import AnnotatedVideo, Annotations, clean_caption
from pipelines.datasets.plain_pickle import load_plain_pickle
from pipelines.datasets.published_files import (
    count_warnings,
    listing_warnings,
    locate_by_stem,
    read_id_lines,
    reading,
    refuse_shared_videos,
    require_files,
)
from pipelines.datasets.record_files import is_missing
from pipelines.datasets.video_files import VideoFolder
from pipelines.recipe.data import Split
from pipelines.workspace.storage import Storage

LIST_FILES: Mapping[Split, str] = {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt"}

CAPTIONS_FILE = "raw-captions.pkl"

ANNOTATION_FILES = [*LIST_FILES.values(), CAPTIONS_FILE]

PUBLISHED_VIDEOS: Mapping[Split, int] = {"train": 1_200, "val": 100, "test": 670}

PUBLISHED_CAPTIONS: Mapping[Split, int] = {"train": 48_774, "val": 4_290, "test": 27_763}


def read_msvd(annotations: Storage, videos: VideoFolder) -> Annotations:
    """The listed videos with all their captions, in every split.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: a file does not have its published form, or a video is in two lists.
    """
    require_files(annotations, ANNOTATION_FILES, dataset="MSVD")
    lists = {split: read_id_lines(annotations, name) for split, name in LIST_FILES.items()}
    refuse_shared_videos({LIST_FILES[split]: ids for split, ids in lists.items()})
    captions, num_unusable = _read_captions(annotations)
    locate = locate_by_stem(videos, suffix=".avi")
    entries = []
    for split, ids in lists.items():
        for video_id in ids:
            if video_id in captions:
                entries.append(
                    AnnotatedVideo(video_id=video_id, **locate(video_id), split=split, captions=captions[video_id])
                )
    warnings = listing_warnings(
        "the lists", [video_id for ids in lists.values() for video_id in ids], CAPTIONS_FILE, captions
    )
    if num_unusable:
        warnings.append(f"{CAPTIONS_FILE}: {num_unusable:,} captions are empty or not in UTF-8 and are left out")
    for split, ids in lists.items():
        num_captions = sum(len(captions.get(video_id, ())) for video_id in ids)
        warnings += count_warnings(
            [
                (LIST_FILES[split], len(ids), PUBLISHED_VIDEOS[split], "videos"),
                (CAPTIONS_FILE, num_captions, PUBLISHED_CAPTIONS[split], f"captions of {split} videos"),
            ]
        )
    return Annotations(videos=entries, warnings=warnings, files=ANNOTATION_FILES)


def _read_captions(annotations: Storage) -> tuple[dict[str, list[str]], int]:
    """Captions by video id, and the number of those that cannot be used."""
    with reading(annotations, CAPTIONS_FILE, form="a pickled dictionary {id: [[word, …], …], …}"):
        pickled = load_plain_pickle(annotations.read_bytes(CAPTIONS_FILE))
        captions = {_text(video): [_caption(words) for words in sentences] for video, sentences in pickled.items()}
    usable = {video: [text for text in texts if text] for video, texts in captions.items()}
    num_unusable = sum(texts.count("") for texts in captions.values())
    return {video: texts for video, texts in usable.items() if texts}, num_unusable


def _caption(words: Any) -> str:
    """The words of a caption as one text; empty if it is missing, or bytes in an encoding that is not known."""
    if is_missing(words):
        return ""
    if not isinstance(words, (list, tuple)):
        raise TypeError(f"a caption is a {type(words).__name__}, not a list of words")
    try:
        return clean_caption(" ".join(map(_text, words)))
    except UnicodeDecodeError:
        return ""


def _text(value: Any) -> str:
    """A text of the pickle, which is UTF-8 where Python 2 wrote it."""
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise TypeError(f"{str(text)[:40]!r} is a {type(text).__name__}, not a text")
    return text
