"""Captions of a generated clip with one word changed, which makes them false for the clip.

Colour and shape are replaced by another one, a motion by its opposite ("moves left", "moves right"), and two events
change places. No event of the clip matches the changed words, so every changed caption is certainly false.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.captions import MOTION_PHRASES, SHAPE_NAMES, Attribute, Caption, Grounding
from pipelines.shapes.events import COLOURS, SHAPES, Motion, Script, Triple

_NEGATIVES_STREAM = 5
"""Second word of the random seed, so that the changed word is drawn independently of everything else."""

OPPOSITES: dict[Motion, Motion] = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "grow": "shrink",
    "shrink": "grow",
    "appear": "disappear",
    "disappear": "appear",
}


def negatives_of(config: ShapesConfig, script: Script, caption: Caption) -> dict[str, str]:
    """A changed caption by class: ``colour``, ``shape``, ``motion`` and, of two events, ``order``."""
    # Seeded by the text and not by its number, so that equal captions of a clip have equal negatives.
    rng = np.random.default_rng([config.seed, _NEGATIVES_STREAM, script.number, *caption.text.encode()])
    triples = [event.triple for event in script.events]
    found: dict[str, str] = {}
    attributes: tuple[Attribute, ...] = ("colour", "shape", "motion")
    for attribute in attributes:
        events = [grounding.event for grounding in caption.groundings if grounding.attribute == attribute]
        event = events[int(rng.integers(len(events)))]
        # The unchanged event is among the changes, and falls out with the other events of the clip.
        options = [(triple, phrase) for triple, phrase in _changes(triples[event], attribute, caption, event)
                   if triple not in triples]  # fmt: skip
        if options:
            _, phrase = options[int(rng.integers(len(options)))]
            found[attribute] = _replaced(caption, _grounding(caption, attribute, event), phrase)
    if len(caption.clauses) == 2:
        found["order"] = _exchanged(caption)
    return found


def _changes(triple: Triple, attribute: Attribute, caption: Caption, event: int) -> Iterator[tuple[Triple, str]]:
    """All changes of the attribute: the changed event, and the words that replace those of the attribute."""
    grounding = _grounding(caption, attribute, event)
    words = " ".join(caption.text.split()[grounding.start : grounding.end])
    if attribute == "colour":
        for colour in COLOURS:
            yield replace(triple, colour=colour), colour
    elif attribute == "shape":
        for shape in SHAPES:
            yield replace(triple, shape=shape), SHAPE_NAMES[shape][0]
    else:
        opposite = OPPOSITES[triple.motion]
        # By place among the phrases, of which growing has one more than shrinking.
        form = MOTION_PHRASES[triple.motion].index(words)
        phrases = MOTION_PHRASES[opposite]
        yield replace(triple, motion=opposite), phrases[min(form, len(phrases) - 1)]


def _grounding(caption: Caption, attribute: Attribute, event: int) -> Grounding:
    return next(each for each in caption.groundings if (each.attribute, each.event) == (attribute, event))


def _replaced(caption: Caption, grounding: Grounding, phrase: str) -> str:
    words = caption.text.split()
    return " ".join([*words[: grounding.start], *phrase.split(), *words[grounding.end :]])


def _exchanged(caption: Caption) -> str:
    words = caption.text.split()
    first, second = sorted(caption.clauses)
    return " ".join(
        [
            *words[: first.start],
            *words[second.start : second.end],
            *words[first.end : second.start],
            *words[first.start : first.end],
            *words[second.end :],
        ]
    )
