"""Captions and questions about a generated clip, and which word speaks of which event.

The vocabulary is compact, and every word of it is a single piece of CLIP's tokenizer, so that
word ``i`` of a caption is token ``i + 1`` (the first token marks the start).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.recipe.data import ShapesConfig
from pipelines.shapes.events import Motion, Script, Shape, Triple

_CAPTIONS_STREAM = 4
"""Second number of the random seed, so that captions are drawn independently of the events and the pictures."""

Attribute = Literal["colour", "shape", "motion"]

SHAPE_NAMES: dict[Shape, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross",),
    "ring": ("ring",),
}

MOTION_PHRASES: dict[Motion, tuple[str, ...]] = {
    "left": ("moves left", "goes left", "slides to the left"),
    "right": ("moves right", "goes right", "slides to the right"),
    "up": ("moves up", "goes up", "rises"),
    "down": ("moves down", "goes down", "falls"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("gets smaller", "becomes smaller"),
    "appear": ("appears", "comes into view"),
    "disappear": ("disappears", "goes away"),
}

# "C", "S" and "M" stand for the colour, the shape and the motion; other words stay.
_ONE_EVENT = ("a C S M", "the S that M is C", "there is a C S that M", "C S M", "we see a C S and it M")
_CLAUSES = ("a C S M", "a S which is C M")

# Three of them, with start and end, are 24 tokens at most: as many as models read by default.
_SHORT_CLAUSES = ("C S M",)

# "A", "B" and "C" stand for the clauses of the first, the second and the third event.
_TWO_EVENTS = ("A then B", "A and then B", "first A and after that B", "A before B", "B after A")
_THREE_EVENTS = (
    "A then B then C",
    "A before B before C",
    "C after B after A",
    "first A then B then C",
    "A and then B and then C",
)

_ATTRIBUTES: dict[str, Attribute] = {"C": "colour", "S": "shape", "M": "motion"}


@dataclass(frozen=True, slots=True)
class Grounding:
    """The words ``[start, end)`` of a caption, counted from 0, name an attribute of an event."""

    start: int
    end: int
    attribute: Attribute
    event: int


@dataclass(frozen=True, order=True, slots=True)
class Clause:
    """The words ``[start, end)`` of a caption, counted from 0, tell an event."""

    start: int
    end: int
    event: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence of words separated by single spaces, and what its words point at."""

    text: str
    groundings: tuple[Grounding, ...]
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer; ``kind`` is its question word."""

    question: str
    answer: str
    kind: str


def draw_captions(config: ShapesConfig, script: Script) -> list[Caption]:
    """``config.captions_per_video`` paraphrases of the events, different as long as there are enough."""
    rng = np.random.default_rng([config.seed, _CAPTIONS_STREAM, script.number])
    captions: dict[str, Caption] = {}
    # A single event has about 30 paraphrases; a bounded number of tries keeps larger requests finite.
    for _ in range(50 * config.captions_per_video):
        caption = _draw_caption([event.triple for event in script.events], rng)
        captions.setdefault(caption.text, caption)
        if len(captions) == config.captions_per_video:
            break
    distinct = list(captions.values())
    return [distinct[i % len(distinct)] for i in range(config.captions_per_video)]


def questions_about(script: Script) -> list[Question]:
    """Questions that the clip answers uniquely: of colour, of shape, and the number of objects."""
    triples = [event.triple for event in script.events]
    count = ("one", "two", "three")[len(triples) - 1]
    questions = [Question("how many objects are there", count, "how")]
    for triple in triples:
        motion = MOTION_PHRASES[triple.motion][0]
        if sum(other.shape == triple.shape for other in triples) == 1:
            questions.append(Question(f"what color is the {triple.shape}", triple.colour, "what"))
        if sum(other.motion == triple.motion for other in triples) == 1:
            questions.append(Question(f"what {motion}", triple.shape, "what"))
    return questions


def _draw_caption(triples: Sequence[Triple], rng: np.random.Generator) -> Caption:
    words: list[str] = []
    groundings: list[Grounding] = []
    clauses: list[Clause] = []
    if len(triples) == 1:
        _append_clause(words, groundings, _choose(_ONE_EVENT, rng), triples[0], 0, rng)
        clauses.append(Clause(0, len(words), 0))
    else:
        templates, forms = (_TWO_EVENTS, _CLAUSES) if len(triples) == 2 else (_THREE_EVENTS, _SHORT_CLAUSES)
        for word in _choose(templates, rng).split():
            if word in ("A", "B", "C"):
                # The letter counts events in time, wherever their clauses stand in the sentence.
                event, start = "ABC".index(word), len(words)
                _append_clause(words, groundings, _choose(forms, rng), triples[event], event, rng)
                clauses.append(Clause(start, len(words), event))
            else:
                words.append(word)
    return Caption(" ".join(words), tuple(groundings), tuple(clauses))


def _append_clause(
    words: list[str],
    groundings: list[Grounding],
    template: str,
    triple: Triple,
    event: int,
    rng: np.random.Generator,
) -> None:
    fillings = {
        "C": triple.colour,
        "S": _choose(SHAPE_NAMES[triple.shape], rng),
        "M": _choose(MOTION_PHRASES[triple.motion], rng),
    }
    for slot in template.split():
        filling = fillings.get(slot, slot).split()
        if slot in fillings:
            groundings.append(Grounding(len(words), len(words) + len(filling), _ATTRIBUTES[slot], event))
        words.extend(filling)


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
