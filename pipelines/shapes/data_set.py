"""A generated data set in MSR-VTT's layout with known ground truth.

Clips show one or two consecutive events ("a red circle moves left then a blue square grows"), or as many as asked, as
real H.264 files ``videos/video<N>.mp4``. ``truth.jsonl`` beside the annotation files says which
words of each caption are to be seen in which frames. Every clip is a function of (seed, number),
so any number of processes may write disjoint ranges in any order.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import Caption, draw_captions, questions_about
from pipelines.shapes.events import Script, draw_script
from pipelines.shapes.rendering import encode_mp4, render_clip
from pipelines.workspace.storage import Storage

VIDEOS_FOLDER = "videos"
"""Sub-folder of the video files; the annotation files lie beside it."""

ANSWERS = 1500
"""Answers that get a class id, the most frequent first (as in MSR-VTT-QA)."""


def video_id(number: int) -> str:
    """The id of clip ``number``, as MSR-VTT names its videos."""
    return f"video{number}"


def write_clip(config: ShapesConfig, number: int, folder: Storage) -> None:
    """Commits the file of clip ``number`` under the videos of the data set at ``folder``."""
    frames = render_clip(config, draw_script(config, number))
    folder.write_bytes(f"{VIDEOS_FOLDER}/{video_id(number)}.mp4", encode_mp4(frames, config.fps))


def write_clips(config: ShapesConfig, numbers: Iterable[int], folder: Storage) -> int:
    """Commits the files of the clips ``numbers``; returns how many.

    Safe to run twice and in several processes at once: each clip is written whole, always the same.
    """
    count = 0
    for number in numbers:
        write_clip(config, number, folder)
        count += 1
    return count


def write_annotations(config: ShapesConfig, folder: Storage) -> None:
    """Commits MSR-VTT's annotation files, the questions, and ``truth.jsonl`` (no video is drawn)."""
    scripts = [draw_script(config, number) for number in range(config.train_videos + config.test_videos)]
    captions = [draw_captions(config, script) for script in scripts]
    train, test = scripts[: config.train_videos], scripts[config.train_videos :]

    folder.write_json("MSRVTT_data.json", _sentences(scripts, captions))
    folder.write_bytes("MSRVTT_train.9k.csv", _csv(["video_id"], [[video_id(script.number)] for script in train]))
    # As in the 1k-A list, one sentence of each test video is its query.
    rows = [
        [f"ret{key}", f"msr{script.number}", video_id(script.number), captions[script.number][0].text]
        for key, script in enumerate(test)
    ]
    folder.write_bytes("MSRVTT_JSFUSION_test.csv", _csv(["key", "vid_key", "video_id", "sentence"], rows))
    # MSR-VTT-QA has a validation file of its own; here it holds a tenth of the training clips.
    num_validation = len(train) // 10
    questions = {
        "train": train[num_validation:],
        "val": train[:num_validation],
        "test": test,
    }
    for split, members in questions.items():
        folder.write_bytes(f"{split}.jsonl", _json_lines(_question_records(members)))
    folder.write_json("train_ans2label.json", _answer_classes(questions["train"]))
    folder.write_bytes(
        "truth.jsonl",
        _json_lines(clip_truth(config, script, captions[script.number]) for script in scripts),
    )


def _sentences(scripts: Sequence[Script], captions: Sequence[Sequence[Caption]]) -> dict[str, Any]:
    pairs = [(script, caption) for script in scripts for caption in captions[script.number]]
    return {
        "videos": [{"video_id": video_id(script.number), "id": script.number} for script in scripts],
        "sentences": [
            {"caption": caption.text, "video_id": video_id(script.number), "sen_id": index}
            for index, (script, caption) in enumerate(pairs)
        ],
    }


def _question_records(scripts: Iterable[Script]) -> list[dict[str, Any]]:
    return [
        {
            "answer": question.answer,
            "question": question.question,
            "video_id": video_id(script.number),
            "answer_type": question.kind,
        }
        for script in scripts
        for question in questions_about(script)
    ]


def _answer_classes(scripts: Iterable[Script]) -> dict[str, int]:
    counts = Counter(question.answer for script in scripts for question in questions_about(script))
    # Equal counts go by the alphabet, so that class ids depend on nothing but the answers.
    ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
    return {answer: index for index, answer in enumerate(ordered[:ANSWERS])}


def clip_truth(config: ShapesConfig, script: Script, captions: Sequence[Caption]) -> dict[str, Any]:
    """A line of ``truth.jsonl``: events with frames and seconds (half-open), and the word spans that name them."""
    events = [
        {
            **asdict(event.triple),
            "frames": [event.start, event.end],
            "visible_frames": [event.visible_start, event.visible_end],
            "start_s": event.start / config.fps,
            "end_s": event.end / config.fps,
            "visible_start_s": event.visible_start / config.fps,
            "visible_end_s": event.visible_end / config.fps,
        }
        for event in script.events
    ]
    return {
        "video_id": video_id(script.number),
        "split": "train" if script.number < config.train_videos else "test",
        "fps": config.fps,
        "num_frames": script.num_frames,
        "events": events,
        "captions": [
            {
                "caption": caption.text,
                "words": [
                    # A motion is seen over its whole event, also while its object is still absent.
                    {
                        "span": [grounding.start, grounding.end],
                        "attribute": grounding.attribute,
                        "event": grounding.event,
                        "frames": events[grounding.event][
                            "frames" if grounding.attribute == "motion" else "visible_frames"
                        ],
                    }
                    for grounding in caption.groundings
                ],
            }
            for caption in captions
        ],
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
