from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe.fields import check_fields, field_names, flatten, with_values
from pipelines.recipe.recipe import Recipe
from pipelines.tune.space import Range, Values, parse_space
from pipelines.workspace.artifact import plain


@pytest.mark.parametrize(
    ("description", "domain"),
    [
        ("loguniform 0.05 10", Range(0.05, 10.0, log=True)),
        ("loguniform 1e-5 1e-3", Range(1e-5, 1e-3, log=True)),
        ("uniform -1 1", Range(-1.0, 1.0)),
        ("int 1 8", Range(1, 8, integer=True)),
        ("choice 1 2.5 3e-4", Values((1, 2.5, 3e-4))),
        ("choice exact none", Values(("exact", "none"))),
        ("choice true null", Values((True, None))),
        ("grid 0 1 2", Values((0, 1, 2), every=True)),
        ({"loguniform": [0.05, 10]}, Range(0.05, 10.0, log=True)),
        ({"choice": [[1, 0, 0], [1, 1, 1]]}, Values(([1, 0, 0], [1, 1, 1]))),
    ],
)
def test_descriptions_are_understood(description: Any, domain: object) -> None:
    (parameter,) = parse_space({"model.loss.kl": description}).parameters
    assert (parameter.field, parameter.domain, dict(parameter.when)) == ("model.loss.kl", domain, {})


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("loguniform 10 0.05", "the first must be below the second"),
        ("uniform 1 1", "the first must be below the second"),
        ("loguniform 0 10", "needs numbers above 0"),
        ("loguniform 1", "needs two numbers"),
        ("uniform low high", "needs two numbers"),
        ("int 1.5 3", "whole numbers"),
        ("choice", "is a choice without values"),
        ("grid 1 1", "lists a value twice"),
        ("normal 0 1", "write one of uniform, loguniform, int, choice, grid"),
        ("", "write one of"),
        (0.5, "write one of"),
        ({"choice": 3}, "write one of"),
        ({"choice": [1], "grid": [2]}, "write one of"),
        ({"when": {"a": 1}}, "write one of"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(description: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"tune.space.model.loss.kl .*{message}"):
        parse_space({"model.loss.kl": description})


def test_a_space_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tune.space is empty"):
        parse_space({})


NESTED = {
    "c": {"uniform": [0, 1], "when": {"b": [1, 2]}},
    "b": {"choice": [1, 2, 3], "when": {"a": "on"}},
    "a": "choice on off",
}
"""``c`` hangs on ``b``, which hangs on ``a``; given the wrong way round."""


def test_fields_are_drawn_after_those_that_they_hang_on() -> None:
    space = parse_space(NESTED)
    assert space.fields == ("a", "b", "c")
    drawn = [
        space.draw(lambda parameter, values=values: values[parameter.field])  # type: ignore[misc]
        for values in ({"a": a, "b": b, "c": 0.5} for a, b in itertools.product(("on", "off"), (1, 2, 3)))
    ]
    assert drawn == [
        {"a": "on", "b": 1, "c": 0.5},
        {"a": "on", "b": 2, "c": 0.5},
        {"a": "on", "b": 3},
        {"a": "off"},
        {"a": "off"},
        {"a": "off"},
    ]


def test_probes_differ_in_one_field_whose_conditions_they_meet() -> None:
    space = parse_space(NESTED)
    assert space.probes("a") == [{"a": "on", "b": 1, "c": 0}, {"a": "off"}]
    assert space.probes("b") == [{"a": "on", "b": 1, "c": 0}, {"a": "on", "b": 2, "c": 0}, {"a": "on", "b": 3}]
    assert space.probes("c") == [{"a": "on", "b": 1, "c": 0}, {"a": "on", "b": 1, "c": 1}]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"a": {"choice": [1], "when": {"other": 1}}}, "tuned when other has a value, and other is not tuned"),
        ({"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}}, "depend on one another"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(document)


def test_a_grid_holds_every_combination_once() -> None:
    space = parse_space({"a": "grid 1 2", "b": {"grid": [7, 8], "when": {"a": 2}}, "c": "choice x y"})
    assert space.combinations() == [
        {"a": 1, "c": "x"},
        {"a": 1, "c": "y"},
        {"a": 2, "b": 7, "c": "x"},
        {"a": 2, "b": 7, "c": "y"},
        {"a": 2, "b": 8, "c": "x"},
        {"a": 2, "b": 8, "c": "y"},
    ]
    with pytest.raises(ValueError, match=r"sampler grid tries every value, and b is uniform 0 1"):
        parse_space({"a": "grid 1 2", "b": "uniform 0 1"}).combinations()


@given(st.floats(0.05, 10), st.floats(-0.4, 9.4))
def test_drawn_numbers_are_short_and_stay_inside(value: float, whole: float) -> None:
    tidied = Range(0.05, 10.0, log=True).tidy(value)
    assert 0.05 <= tidied <= 10
    assert tidied == pytest.approx(value, rel=5e-4)
    assert len(f"{tidied}".replace(".", "").lstrip("0")) <= 4 or tidied == 10.0
    assert Range(1, 8, integer=True).tidy(whole) in range(1, 9)


@dataclass(frozen=True)
class Leaf:
    size: int = 1


@dataclass(frozen=True)
class Root:
    rate: float = 0.5
    leaf: Leaf = field(default_factory=Leaf)
    absent: Leaf | None = None


def test_names_reach_into_sections_that_may_be_absent() -> None:
    assert list(field_names(Root)) == ["rate", "leaf.size", "absent.size"]
    known = list(field_names(Recipe))
    assert {"model.loss.kl", "data.shapes.train_videos", "retrieval.optimizer.betas", "seed"} <= set(known)
    check_fields(["model.loss.kl"], known, "here")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.loss.kll", "did you mean model.loss.kl"),
        ("loss.kl", "did you mean model.loss.kl"),
        ("model.loss", "which is not a field of a recipe"),
    ],
)
def test_unknown_fields_are_refused_with_those_that_look_like_them(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"tune.space names {name}.*{hint}"):
        check_fields([name], list(field_names(Recipe)), "tune.space")


def test_values_go_into_a_copy_of_the_document() -> None:
    document = {"rate": 0.5, "leaf": {"size": 1}, "absent": None}
    values = {"leaf.size": 2, "absent.size": 3}
    assert with_values(document, values) == {"rate": 0.5, "leaf": {"size": 2}, "absent": {"size": 3}}
    assert document == plain(Root())


def test_sections_and_dotted_names_say_the_same() -> None:
    known = ["a.b.c", "a.d", "space"]
    nested = {"a": {"b": {"c": 1}, "d": 2}, "space": {"x": 1}}
    assert flatten(nested, known) == flatten({"a.b.c": 1, "a": {"d": 2}, "space": {"x": 1}}, known)
    assert flatten(nested, known) == {"a.b.c": 1, "a.d": 2, "space": {"x": 1}}
