from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import draw_captions, questions_about
from pipelines.shapes.data_set import write_annotations, write_clips
from pipelines.shapes.events import COLOURS, MOTIONS, SHAPES, draw_script, split_triples
from pipelines.shapes.rendering import render_clip
from pipelines.workspace.artifact import plain
from pipelines.workspace.storage import Storage

CONFIG = ShapesConfig(train_videos=300, test_videos=250)
TRAIN, TEST = range(300), range(300, 550)
DIGEST = "767517315dd3bb20ac962d22c7b97229498c40f3aabd816ea709fe7c6c456b56"
"""Of all scripts and captions of ``CONFIG``, which frames and models of existing workspaces were made of."""


def test_test_clips_show_only_combinations_that_training_never_shows() -> None:
    shown = [
        {event.triple for number in split for event in draw_script(CONFIG, number).events} for split in (TRAIN, TEST)
    ]
    assert not shown[0] & shown[1]


def test_every_pair_of_attributes_occurs_in_training() -> None:
    seen, held_out = split_triples(0)
    assert len(seen) + len(held_out) == len(COLOURS) * len(SHAPES) * len(MOTIONS)
    assert len(held_out) / (len(seen) + len(held_out)) == pytest.approx(0.25, abs=0.02)
    for first, second in combinations(("colour", "shape", "motion"), 2):
        pairs = {(getattr(triple, first), getattr(triple, second)) for triple in seen}
        assert pairs >= {(getattr(triple, first), getattr(triple, second)) for triple in held_out}


def test_test_clips_differ_in_what_happens_and_in_their_caption() -> None:
    scripts = [draw_script(CONFIG, number) for number in TEST]
    assert len({tuple(event.triple for event in script.events) for script in scripts}) == len(scripts)
    assert len({draw_captions(CONFIG, script)[0].text for script in scripts}) == len(scripts)
    assert 0.1 < np.mean([len(script.events) == 1 for script in scripts]) < 0.5


def test_captions_of_a_clip_differ_and_name_what_happens() -> None:
    for number in (*TRAIN[:40], *TEST[:40]):
        script = draw_script(CONFIG, number)
        captions = draw_captions(CONFIG, script)
        assert len({caption.text for caption in captions}) == CONFIG.captions_per_video
        for caption in captions:
            words = caption.text.split(" ")
            named = Counter((grounding.event, grounding.attribute) for grounding in caption.groundings)
            expected = [(i, name) for i in range(len(script.events)) for name in ("colour", "shape", "motion")]
            assert named == Counter(expected)
            for grounding in caption.groundings:
                if grounding.attribute == "colour":
                    assert words[grounding.start : grounding.end] == [script.events[grounding.event].triple.colour]


def test_each_word_is_one_token() -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    captions = [caption.text for number in TRAIN for caption in draw_captions(CONFIG, draw_script(CONFIG, number))]
    words = {word for caption in captions for word in caption.split()}
    assert {word for word in words if len(tokenizer.encode(word)) != 1} == set()


def test_the_object_is_seen_exactly_where_the_truth_says() -> None:
    for number in TRAIN[:60]:
        script = draw_script(CONFIG, number)
        frames = render_clip(CONFIG, script).astype(int)
        visible = np.zeros(script.num_frames, bool)
        for event in script.events:
            visible[event.visible_start : event.visible_end] = True
        # Colours stand out from the dark background by far more than its shading.
        bright = frames.max(axis=(1, 2, 3)) > 150
        np.testing.assert_array_equal(bright, visible)


@pytest.mark.slow
def test_motions_look_like_their_names() -> None:
    seen = set()
    for number in TRAIN:
        script = draw_script(CONFIG, number)
        frames = render_clip(CONFIG, script)
        for event in script.events:
            seen.add(event.triple.motion)
            first, last = (frames[i].max(axis=-1) > 120 for i in (event.visible_start, event.visible_end - 1))
            (y0, x0), (y1, x1) = np.argwhere(first).mean(axis=0), np.argwhere(last).mean(axis=0)
            dx, dy, growth = x1 - x0, y1 - y0, last.sum() / first.sum()
            # Positions in pixels of 64; travels cover at least 0.4 of the picture.
            looks = {"left": dx < -20, "right": dx > 20, "up": dy < -20, "down": dy > 20, "grow": growth > 3}
            looks["shrink"] = growth < 1 / 3
            assert {motion for motion, holds in looks.items() if holds} == ({event.triple.motion} & looks.keys())
    assert seen == set(MOTIONS)


def test_questions_have_one_answer() -> None:
    for number in TRAIN:
        questions = questions_about(draw_script(CONFIG, number))
        assert len({question.question for question in questions}) == len(questions)


def test_a_clip_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    first, second = Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))
    write_clips(CONFIG, [0, 1, 400], first)
    write_clips(CONFIG, [400, 1, 0], second)
    for number in (0, 1, 400):
        assert first.read_bytes(f"videos/video{number}.mp4") == second.read_bytes(f"videos/video{number}.mp4")
    other = ShapesConfig(train_videos=300, test_videos=250, seed=1)
    assert draw_script(CONFIG, 0) != draw_script(other, 0)


def test_files_play_back_what_was_drawn(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_clips(CONFIG, [3], storage)
    drawn = render_clip(CONFIG, draw_script(CONFIG, 3))
    with av.open(str(tmp_path / "videos/video3.mp4")) as container:
        assert container.streams.video[0].codec.canonical_name == "h264"
        assert float(container.streams.video[0].average_rate or 0) == CONFIG.fps
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == drawn.shape
    # 4:2:0 colour blurs outlines; elsewhere the loss is a few levels.
    assert np.abs(frames.astype(int) - drawn).mean() < 4


def test_truth_agrees_with_the_annotations(tmp_path: Path) -> None:
    config = ShapesConfig(train_videos=6, test_videos=3)
    write_annotations(config, Storage(str(tmp_path)))
    truth = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    sentences = json.loads((tmp_path / "MSRVTT_data.json").read_text())["sentences"]
    assert [(row["video_id"], caption["caption"]) for row in truth for caption in row["captions"]] == [
        (sentence["video_id"], sentence["caption"]) for sentence in sentences
    ]
    assert [row["split"] for row in truth] == ["train"] * 6 + ["test"] * 3
    for row in truth:
        assert row["events"][0]["frames"][0] == 0
        assert row["events"][-1]["frames"][1] == row["num_frames"]


def test_a_clip_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="clips 0 to 549"):
        draw_script(CONFIG, 550)


@pytest.mark.slow
@pytest.mark.parametrize("events", [1, 2, 3])
def test_every_clip_has_as_many_events_as_asked(events: int) -> None:
    # The shortest clips there are.
    config = ShapesConfig(train_videos=60, test_videos=60, events=events, duration_s=0.5)
    scripts = [draw_script(config, number) for number in range(120)]
    assert {len(script.events) for script in scripts} == {events}
    seen, held_out = (set(triples) for triples in split_triples(config.seed))
    for script in scripts:
        triples = [event.triple for event in script.events]
        assert set(triples) <= (seen if script.number < 60 else held_out)
        assert len({(triple.colour, triple.shape) for triple in triples}) == events
        assert [event.start for event in script.events[1:]] == [event.end for event in script.events[:-1]]
        assert all(event.end - event.start >= 2 for event in script.events)
        assert all(event.start <= event.visible_start < event.visible_end <= event.end for event in script.events)
        assert render_clip(config, script).shape[0] == script.num_frames
    assert len({tuple(event.triple for event in script.events) for script in scripts[60:]}) == 60


def test_captions_of_three_events_name_all_of_them_and_fit_the_demos_model() -> None:
    config = ShapesConfig(train_videos=80, test_videos=1, events=3)
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    for number in range(80):
        script = draw_script(config, number)
        captions = draw_captions(config, script)
        assert len({caption.text for caption in captions}) == config.captions_per_video
        for caption in captions:
            words = caption.text.split(" ")
            assert len(tokenizer.encode(caption.text)) == len(words) <= 22
            assert {(ground.event, ground.attribute) for ground in caption.groundings} == {
                (event, name) for event in range(3) for name in ("colour", "shape", "motion")
            }
            for ground in caption.groundings:
                if ground.attribute == "colour":
                    assert words[ground.start] == script.events[ground.event].triple.colour
    assert {question.answer for question in questions_about(draw_script(config, 0))} >= {"three"}


def test_clips_without_a_number_of_events_are_those_of_before() -> None:
    scripts = [draw_script(CONFIG, number) for number in (*TRAIN, *TEST)]
    captions = [[(one.text, one.groundings) for one in draw_captions(CONFIG, script)] for script in scripts]
    found = repr(list(zip(scripts, captions, strict=True)))
    assert hashlib.sha256(found.encode()).hexdigest() == DIGEST
    assert "events" not in plain(CONFIG)
    with pytest.raises(ValueError, match=r"data\.shapes\.events is 4"):
        ShapesConfig(events=4)  # type: ignore[arg-type]
