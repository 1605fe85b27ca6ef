"""Captions with a word changed are false of their clip, and differ in the words of their class alone."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator

import pytest

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import MOTION_PHRASES, SHAPE_NAMES, Caption, draw_captions
from pipelines.shapes.events import COLOURS, Script, draw_script
from pipelines.shapes.negatives import OPPOSITES, negatives_of

CONFIG = ShapesConfig(train_videos=120, test_videos=60, captions_per_video=6)
MOTION_OF = {phrase: motion for motion, phrases in MOTION_PHRASES.items() for phrase in phrases}
SHAPE_OF = {name: shape for shape, names in SHAPE_NAMES.items() for name in names}


def clips() -> Iterator[tuple[Script, Caption, dict[str, str]]]:
    for number in range(CONFIG.train_videos + CONFIG.test_videos):
        script = draw_script(CONFIG, number)
        for caption in draw_captions(CONFIG, script):
            yield script, caption, negatives_of(CONFIG, script, caption)


def events_told(text: str) -> list[tuple[str, str, str]]:
    """Colour, shape and motion of what a caption tells, in the order of time, read from its words alone."""
    order = 1
    for word, sign in ((" before ", 1), (" after ", -1), (" then ", 1)):
        if word in text and not (word == " after " and " and after that " in text):
            parts, order = text.split(word), sign
            break
    else:
        parts = text.split(" and after that ")
    told = []
    for part in parts:
        (colour,) = [each for each in COLOURS if each in part.split()]
        (shape,) = [SHAPE_OF[each] for each in part.split() if each in SHAPE_OF]
        (motion,) = [MOTION_OF[phrase] for phrase in MOTION_OF if f" {phrase} " in f" {part} "]
        told.append((colour, shape, motion))
    return told[::order]


@pytest.mark.slow
def test_true_captions_tell_the_events_of_their_clip() -> None:
    for script, caption, _ in clips():
        assert events_told(caption.text) == [
            (event.triple.colour, event.triple.shape, event.triple.motion) for event in script.events
        ]


@pytest.mark.slow
def test_changed_captions_tell_other_events_in_their_class_alone() -> None:
    counts: Counter[str] = Counter()
    places = {"colour": 0, "shape": 1, "motion": 2}
    for script, caption, negatives in clips():
        true = events_told(caption.text)
        for kind, text in negatives.items():
            counts[kind] += 1
            told = events_told(text)
            if kind == "order":
                assert told == true[::-1] != true
                continue
            (changed,) = [(one, other) for one, other in zip(true, told, strict=True) if one != other]
            assert [place for place in range(3) if changed[0][place] != changed[1][place]] == [places[kind]]
            if kind == "motion":
                assert OPPOSITES[changed[0][2]] == changed[1][2]  # type: ignore[index]
            assert changed[1] not in true
        assert set(negatives) - {"order"} == set(places)
        assert ("order" in negatives) == (len(script.events) == 2)
    assert min(counts.values()) > 100


@pytest.mark.slow
def test_one_word_is_changed_where_the_language_has_one() -> None:
    for _, caption, negatives in clips():
        for kind in ("colour", "shape"):
            words = zip(caption.text.split(), negatives[kind].split(), strict=True)
            assert sum(one != other for one, other in words) == 1
        matching = difflib.SequenceMatcher(a=caption.text.split(), b=negatives["motion"].split())
        assert len([part for part in matching.get_opcodes() if part[0] != "equal"]) <= 2


def test_the_same_caption_has_the_same_negatives_everywhere() -> None:
    script = draw_script(CONFIG, 3)
    caption = draw_captions(CONFIG, script)[2]
    assert negatives_of(CONFIG, script, caption) == negatives_of(CONFIG, script, caption)


@pytest.mark.parametrize("number", [0, 7, 121])
def test_clauses_are_the_words_of_their_event(number: int) -> None:
    script = draw_script(CONFIG, number)
    for caption in draw_captions(CONFIG, script):
        assert sorted(clause.event for clause in caption.clauses) == list(range(len(script.events)))
        words = caption.text.split()
        for clause in caption.clauses:
            triple = script.events[clause.event].triple
            text = " ".join(words[clause.start : clause.end])
            assert events_told(text) == [(triple.colour, triple.shape, triple.motion)]
