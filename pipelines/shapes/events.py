"""What happens in a generated clip: its events, their timing, and which split may show them.

A quarter of all (colour, shape, motion) triples is held out: test clips show only those,
training clips only the others, while every colour, shape and motion, and every pair of them,
occurs in training. Everything is a function of (seed, clip number).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Literal

import numpy as np

from pipelines.recipe.data import ShapesConfig

Colour = Literal["red", "green", "blue", "yellow", "pink", "white"]
Shape = Literal["circle", "square", "triangle", "star", "cross", "ring"]
Motion = Literal["left", "right", "up", "down", "grow", "shrink", "appear", "disappear"]

COLOURS: tuple[Colour, ...] = ("red", "green", "blue", "yellow", "pink", "white")
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS: tuple[Motion, ...] = ("left", "right", "up", "down", "grow", "shrink", "appear", "disappear")

HELD_OUT_PERIOD = 4
"""One triple in this many is held out for the test split."""

MOST_SEQUENCES = 5000
"""Different sequences of test clips with a given number of events."""

MIN_FRAMES = 8
"""Frames of the shortest clip: enough for three events whose object comes or goes inside them."""

_EVENTS_STREAM, _ORDER_STREAM = 1, 2
"""Second numbers of the random seeds, so that independent draws never share a stream."""


@dataclass(frozen=True, slots=True)
class Triple:
    """One object and what it does."""

    colour: Colour
    shape: Shape
    motion: Motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A triple on the half-open frame interval ``[start, end)`` of its clip.

    The object is seen on ``[visible_start, visible_end)`` only: an object that appears is absent
    before, one that disappears is absent after.
    """

    triple: Triple
    start: int
    end: int
    visible_start: int
    visible_end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """The events of one clip, in order; together they fill its frames."""

    number: int
    num_frames: int
    events: tuple[Event, ...]


@lru_cache(maxsize=8)
def split_triples(seed: int) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """The triples that training may show, and those held out for the test split."""
    rng = np.random.default_rng([seed, _ORDER_STREAM])
    offsets = [rng.permutation(len(values)) for values in (COLOURS, SHAPES, MOTIONS)]
    seen: list[Triple] = []
    held_out: list[Triple] = []
    for (c, colour), (s, shape), (m, motion) in product(enumerate(COLOURS), enumerate(SHAPES), enumerate(MOTIONS)):
        # A Latin-square rule: fixing any two attributes leaves held-out and seen values of the third.
        position = int(offsets[0][c] + offsets[1][s] + offsets[2][m])
        (held_out if position % HELD_OUT_PERIOD == 0 else seen).append(Triple(colour, shape, motion))
    return tuple(seen), tuple(held_out)


@lru_cache(maxsize=8)
def test_sequences(seed: int, events: int | None = None) -> tuple[tuple[Triple, ...], ...]:
    """Every sequence of ``events`` held-out triples once; without a number, the sequences of one and two events.

    The latter begin with one single event in every three, until there are no more.
    """
    _, held_out = split_triples(seed)
    if events is not None:
        # The 1 makes another stream than that of split_triples. A 0 would not: NumPy fills seeds up with zeros.
        rng = np.random.default_rng([seed, _ORDER_STREAM, 1, events])
        return tuple(_some_sequences(held_out, events, rng))
    rng = np.random.default_rng([seed, _ORDER_STREAM, 1])
    singles = [(triple,) for triple in held_out]
    pairs = [(first, second) for first, second in product(held_out, held_out) if _distinct_objects(first, second)]
    singles = [singles[i] for i in rng.permutation(len(singles))]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    ordered: list[tuple[Triple, ...]] = []
    while singles:
        ordered += [singles.pop(), pairs.pop(), pairs.pop()]
    return (*ordered, *pairs)


def _some_sequences(triples: Sequence[Triple], events: int, rng: np.random.Generator) -> Iterator[tuple[Triple, ...]]:
    """All sequences of different objects, or the first ``MOST_SEQUENCES`` of them, in a drawn order."""
    shape = (len(triples),) * events
    found = 0
    for number in rng.permutation(len(triples) ** events):
        sequence = tuple(triples[place] for place in np.unravel_index(number, shape))
        if all(_distinct_objects(*pair) for pair in combinations(sequence, 2)):
            yield sequence
            found += 1
            if found == MOST_SEQUENCES:
                return


def draw_script(config: ShapesConfig, number: int) -> Script:
    """The events of clip ``number``; numbers from ``config.train_videos`` on belong to the test split.

    Test clips have different event sequences until all of them (several thousand; 72 of single events) are used up.

    Raises:
        ValueError: there is no clip of that number.
    """
    total = config.train_videos + config.test_videos
    if not 0 <= number < total:
        raise ValueError(f"clip {number} does not exist: data.shapes describes clips 0 to {total - 1}")
    rng = np.random.default_rng([config.seed, _EVENTS_STREAM, number])
    num_frames = max(MIN_FRAMES, round(config.fps * config.duration_s * rng.uniform(0.85, 1.15)))
    if number < config.train_videos:
        triples = _draw_training_triples(split_triples(config.seed)[0], config.events, rng)
    else:
        sequences = test_sequences(config.seed, config.events)
        triples = sequences[(number - config.train_videos) % len(sequences)]
    cuts = [0, *_draw_cuts(len(triples), num_frames, rng), num_frames]
    events = tuple(
        _time_event(triple, start, end, rng) for triple, start, end in zip(triples, cuts[:-1], cuts[1:], strict=True)
    )
    return Script(number=number, num_frames=num_frames, events=events)


def _draw_training_triples(
    seen: tuple[Triple, ...], events: int | None, rng: np.random.Generator
) -> tuple[Triple, ...]:
    drawn = [seen[rng.integers(len(seen))]]
    if events is None:
        # Another order of draws would change the clips of every data set that sets no number of events.
        events = 1 if rng.random() < 0.5 else 2
    while len(drawn) < events:
        other = seen[rng.integers(len(seen))]
        if all(_distinct_objects(before, other) for before in drawn):
            drawn.append(other)
    return tuple(drawn)


def _draw_cuts(events: int, num_frames: int, rng: np.random.Generator) -> list[int]:
    """The frames at which one event ends and the next begins. Events are about equally long, and have two frames or
    more."""
    # Small enough for the shortest clip, of MIN_FRAMES.
    spread = {1: 0.0, 2: 0.08, 3: 0.05}[events]
    return [round(num_frames * (event / events + rng.uniform(-spread, spread))) for event in range(1, events)]


def _distinct_objects(first: Triple, second: Triple) -> bool:
    """Two events of one object would read as one event, so their colour or shape must differ."""
    return (first.colour, first.shape) != (second.colour, second.shape)


def _time_event(triple: Triple, start: int, end: int, rng: np.random.Generator) -> Event:
    # Drawn for every motion. Both parts of the event keep a frame, so the object is both seen and absent.
    change = min(max(start + round((end - start) * rng.uniform(0.35, 0.6)), start + 1), end - 1)
    return Event(
        triple=triple,
        start=start,
        end=end,
        visible_start=change if triple.motion == "appear" else start,
        visible_end=change if triple.motion == "disappear" else end,
    )
