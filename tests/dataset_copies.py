"""Small copies of the published data sets: their annotation files, with contents of our own."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_msrvtt(
    folder: Path, *, train: Mapping[str, Sequence[str]], test: Mapping[str, str], train_list: str = "9k"
) -> None:
    """Captions by id of the training videos, the one caption by id of the test videos."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [*train.items(), *((video, [caption]) for video, caption in test.items())]
    sentences = [{"caption": text, "video_id": video} for video, captions in texts for text in captions]
    for number, sentence in enumerate(sentences):
        sentence["sen_id"] = str(number)
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    _write_csv(folder / f"MSRVTT_train.{train_list}.csv", ["video_id"], [[video] for video in train])
    rows = [[f"ret{i}", f"msr{i}", video, caption] for i, (video, caption) in enumerate(test.items())]
    _write_csv(folder / "MSRVTT_JSFUSION_test.csv", ["key", "vid_key", "video_id", "sentence"], rows)


def write_msrvtt_qa(folder: Path, questions: Mapping[str, Sequence[tuple[str, str, str]]]) -> None:
    """Video id, question and answer by split (train, val, test)."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, asked in questions.items():
        lines = [
            {"video_id": video, "question": question, "answer": answer, "answer_type": question.split()[0]}
            for video, question, answer in asked
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = dict.fromkeys(answer for _, _, answer in questions.get("train", ()))
    (folder / "train_ans2label.json").write_text(json.dumps({answer: label for label, answer in enumerate(answers)}))


def write_msvd(folder: Path, lists: Mapping[str, Sequence[str]], captions: Mapping[str, Sequence[str]]) -> None:
    """Ids by split (train, val, test), and captions by id."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        (folder / f"{split}_list.txt").write_text("\n".join(lists.get(split, ())) + "\n")
    words = {video: [text.split() for text in texts] for video, texts in captions.items()}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(words, protocol=2))


def write_activitynet(folder: Path, splits: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Records by id and split (train, val_1)."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, ids in (("train", "train_ids"), ("val_1", "val_ids")):
        records = splits.get(split, {})
        (folder / f"{split}.json").write_text(json.dumps(records))
        (folder / f"{ids}.json").write_text(json.dumps(list(records)))


def write_didemo(folder: Path, splits: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Descriptions by id and split (train, val, test); those of different videos alternate in the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        videos = splits.get(split, {})
        moments = [
            (place, {"video": video, "description": text, "times": [[place, place], [0, place]], "num_segments": 6})
            for video, texts in videos.items()
            for place, text in enumerate(texts)
        ]
        records = [record for _, record in sorted(moments, key=lambda moment: moment[0])]
        (folder / f"{split}_data.json").write_text(json.dumps(records))
        (folder / f"{split}_list.txt").write_text("\n".join(videos) + "\n")


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
