"""What stands beside a figure: the protocol, in fields, in words and as tags, and when two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.protocols import PROTOCOLS, NamedProtocol
from pipelines.evaluate.documents import describe_protocol, differing, protocol_tags
from pipelines.evaluate.protocol import answers_protocol, retrieval_protocol
from pipelines.models.folder import DESCRIPTION, SELECTION
from pipelines.workspace.storage import Storage

CHOSEN = {"chosen": "best epoch by the accuracy", "split": "val", "videos": 100, "epochs": 8, "seed": 42, "score": 50.0}


def model(folder: Path, name: str, selection: dict[str, Any] | None) -> str:
    storage = Storage(str(folder / name))
    storage.write_json(DESCRIPTION, {"kind": "retrieval"})
    if selection is not None:
        storage.write_json(SELECTION, selection)
    return storage.uri


def protocol(checkpoint: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "dataset": "msvd",
        "split": "test",
        "video_ids": ["x", "y"],
        "captions": ["a", "b", "c"],
        "video_of_text": [0, 0, 1],
        "missing_videos": 3,
        "videos_without_caption": 0,
        "checkpoint": checkpoint,
        "seed": 1,
    }
    return retrieval_protocol(**{**given, **changes})


def test_words_hold_gallery_queries_missing_videos_choice_and_seeds(tmp_path: Path) -> None:
    words = describe_protocol(protocol(model(tmp_path, "model", CHOSEN)))
    for part in (
        "3 captions (1 to 2, mean 1.5 a video) and 2 videos of the split test of msvd, 3 videos missing",
        "every caption is a query",
        "post-processing: none",
        "checkpoint: best epoch by the accuracy of 8 on 100 videos of the split val; seeds: training 42, evaluation 1",
    ):
        assert part in words


def test_words_say_where_the_checkpoint_was_chosen_on_the_tested_split(tmp_path: Path) -> None:
    found = protocol(model(tmp_path, "model", CHOSEN), split="val")
    assert "of the split val, the tested one; seeds" in describe_protocol(found)


def test_words_say_whether_a_protocol_of_the_field_is_whole(tmp_path: Path) -> None:
    checkpoint = model(tmp_path, "model", CHOSEN)
    words = describe_protocol(protocol(checkpoint, named=NamedProtocol("msvd", "a list", [2], [3])))
    assert "missing; protocol msvd; text to video" in words
    words = describe_protocol(protocol(checkpoint, named=NamedProtocol("msvd", "a list", [2], [4])))
    assert "protocol msvd, incomplete: it has 2 videos and 4 captions; text" in words
    words = describe_protocol(protocol(checkpoint, named=PROTOCOLS["didemo_sentence"]))
    assert "protocol didemo_sentence, incomplete: it has 1,003 or 1,004 videos; text" in words


def test_questions_are_described_likewise(tmp_path: Path) -> None:
    found = answers_protocol(
        dataset="msrvtt_qa",
        split="test",
        video_ids=["x"],
        asked=[("x", "what", "cat"), ("x", "who", "dog")],
        questions_per_video=[2],
        answerable=1,
        vocabulary=["cat"],
        missing_videos=0,
        checkpoint="pytorch_model.bin.3",
        seed=1,
    )
    words = describe_protocol(found)
    assert words.startswith("2 questions (2 a video) about 1 videos, 1 answers to choose from of the split test")
    assert "the published code chooses on the test set" in words


def test_seeds_epochs_and_scores_may_differ_and_nothing_else(tmp_path: Path) -> None:
    first = protocol(model(tmp_path, "first", CHOSEN))
    again = protocol(model(tmp_path, "again", {**CHOSEN, "epochs": 5, "seed": 43, "score": 1.0}), seed=9)
    assert differing(first, again) == {}
    assert list(differing(first, protocol(model(tmp_path, "last", {"chosen": "last epoch"})))) == ["checkpoint"]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"missing_videos": 4}, ["missing_videos"]),
        ({"captions": ["a", "b", "d"]}, ["pairs"]),
        ({"dataset": "msrvtt"}, ["dataset"]),
        ({"video_of_text": [0, 1, 1]}, ["pairs"]),
        ({"video_ids": ["x", "y", "z"], "captions": list("abcd"), "video_of_text": [0, 0, 1, 2]},
         ["gallery_videos", "text_queries", "captions_per_video", "pairs"]),
    ],
)  # fmt: skip
def test_other_galleries_and_other_queries_are_other_protocols(
    tmp_path: Path, changes: dict[str, Any], fields: list[str]
) -> None:
    checkpoint = model(tmp_path, "model", CHOSEN)
    assert list(differing(protocol(checkpoint), protocol(checkpoint, **changes))) == fields


def test_the_order_of_captions_and_videos_is_no_part_of_it(tmp_path: Path) -> None:
    checkpoint = model(tmp_path, "model", CHOSEN)
    turned = protocol(checkpoint, video_ids=["y", "x"], captions=["c", "b", "a"], video_of_text=[0, 1, 1])
    assert differing(protocol(checkpoint), turned) == {}


def test_tags_are_flat_texts(tmp_path: Path) -> None:
    tags = protocol_tags(protocol(model(tmp_path, "model", CHOSEN)))
    assert tags["protocol.gallery_videos"] == "2"
    assert tags["protocol.captions_per_video.mean"] == "1.5"
    assert tags["protocol.checkpoint.split"] == "val"
